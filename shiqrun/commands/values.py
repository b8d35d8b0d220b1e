"""`shiqrun values` estimates what the reference earns on every prompt of a data set, from its own completions."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen
from omegaconf import DictConfig

from shiqrun.config.choices import build_data, build_reward
from shiqrun.config.run_directory import default_cache_dir
from shiqrun.config.validate import COMMON_NODES, ENDPOINT_NODE, Schema, build, settings, target
from shiqrun.errors import InputError
from shiqrun.util.quoting import quote_for_shell
from shiqrun.util.summary import write_summary

SCHEMA = Schema(
    root="shiqrun.commands.values.Root",
    nodes={**COMMON_NODES, **ENDPOINT_NODE, "values": "shiqrun.estimates.prompt_values.ValueSettings"},
    groups=[*COMMON_NODES],
)


@dataclass(frozen=True, kw_only=True)
class Root:
    """`Root` holds the keys of `conf/values.yaml` that are no nodes."""

    seed: Annotated[int, Ge(0)]
    run_dir: Annotated[str, MinLen(1)]
    resume: Annotated[str, MinLen(1)] | None
    dry_run: bool
    cache_dir: Annotated[str, MinLen(1)] | None
    beta: Annotated[float, Ge(0)] | None
    reward: Any = None


def run(config: DictConfig, run_dir: Path) -> None:
    """Estimate the values of prompts into `run_dir`, or only print how many prompts there are."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from shiqrun.batching.logged_data import examples_of
    from shiqrun.console import console, say_dry_run, say_next
    from shiqrun.estimates.prompt_values import ValueSettings
    from shiqrun.estimates.value_cache import cached_prompt_rewards, read_prompts
    from shiqrun.estimates.value_report import FILE, TRAJECTORIES, value_table, write_values
    from shiqrun.models.policy import ModelSettings, Policy
    from shiqrun.models.precision import build_model
    from shiqrun.models.reference import weights_fingerprint
    from shiqrun.rewards.units import SCORED_BY
    from shiqrun.sampling.endpoint import EndpointSettings, endpoint_of
    from shiqrun.training.artifacts import provenance

    disable_progress_bar()
    set_verbosity_error()
    began = time.perf_counter()
    if not config.get("reward"):
        raise InputError("reward: not set; a prompt's value is what completions earn: give reward=NAME or reward=DIR")
    reward, asked = build_reward(config.reward), settings(config["values"], ValueSettings)
    source, data = build_data(config.data)
    choice, _ = build(config.model, ModelSettings)
    tokenizer = choice.tokenizer(source, examples_of(source, "train", data))
    splits = read_prompts(source, data, tokenizer, asked.max_new_tokens, choice.context())
    prompts = [prompt for of_split in splits.values() for prompt in of_split]
    endpoint = endpoint_of(settings(config.endpoint, EndpointSettings), tokenizer)
    if config.dry_run:
        console.print(f"{len(prompts):,} prompts, {asked.samples} completions each")
        say_dry_run()
        return
    model = build_model(choice, tokenizer, config.seed, (hardware := target(config.hardware)).dtype)
    policy = Policy(model, autocast=hardware.autocast()).eval()
    cache = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    made: dict[str, Any] = {"reference": weights_fingerprint(model), "cache_dir": cache, "device": hardware.device()}
    found = cached_prompt_rewards(policy, prompts, tokenizer, reward, asked, **made, endpoint=endpoint)
    own_val = "val" in source.splits
    said = write_values(run_dir, found, splits, own_val=own_val, right=reward.right, beta=config.beta)
    about = {**found.file.made_with, **{f"reward/{k}": v for k, v in reward.about().items()}}
    about |= {SCORED_BY: reward.fingerprint(), "beta": config.beta}
    told = {"prompts": len(prompts), "prompts_computed": found.new, "seconds": time.perf_counter() - began}
    write_summary(run_dir, {**said, **told, **about, **provenance()})  # written last: marks the end
    console.print(_told(len(prompts), asked.samples, found.new), highlight=False, soft_wrap=True)
    console.print(value_table(said, config.beta))
    beside = f" data.val_path={run_dir / TRAJECTORIES['val']}" if own_val else ""
    where = f"data.path={run_dir / TRAJECTORIES['train']}{beside}"
    console.print(f"their completions: data=jsonl {where}", highlight=False, soft_wrap=True)
    say_next(f"shiqrun train algo=spo algo.values={quote_for_shell(run_dir / FILE)} data=... model=...")


def _told(prompts: int, samples: int, new: int) -> str:
    return f"{prompts:,} prompts, {samples:,} completions each; {new:,} prompts computed now"
