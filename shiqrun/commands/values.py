"""`shiqrun values`: what the reference earns on every prompt of a data set, from its own completions."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, MinLen
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from shiqrun.commands.rundir import default_cache_dir
from shiqrun.commands.validate import WITHOUT_TRAINING, Schema, build, settings, target
from shiqrun.errors import InputError
from shiqrun.files import replacing

if TYPE_CHECKING:
    from shiqrun.rollout.value_file import ValueFile

SCHEMA = Schema(
    root="shiqrun.commands.values.Root",
    nodes={**WITHOUT_TRAINING, "values": "shiqrun.rollout.values.ValueSettings"},
)
FILE, TRAJECTORIES = "values.jsonl", "trajectories.jsonl"


@dataclass(frozen=True, kw_only=True)
class Root:
    """Keys of `conf/values.yaml` that are no nodes."""

    seed: Annotated[int, Ge(0)]
    run_dir: Annotated[str, MinLen(1)]
    resume: Annotated[str, MinLen(1)] | None
    dry_run: bool
    cache_dir: Annotated[str, MinLen(1)] | None
    beta: Annotated[float, Ge(0)] | None
    reward: Any = None


def run(config: DictConfig, run_dir: Path) -> None:
    """Values the prompts into `run_dir`, or only says how many there are."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from shiqrun.artifacts import provenance, write_json
    from shiqrun.console import console, track
    from shiqrun.data.module import DataSettings
    from shiqrun.models.policy import ModelSettings, Policy
    from shiqrun.rollout.value_file import ValueFile
    from shiqrun.rollout.valued import prompts_of
    from shiqrun.rollout.values import ValueSettings, estimate, key_of

    disable_progress_bar()
    set_verbosity_error()
    began = time.perf_counter()
    if not config.get("reward"):
        raise InputError("reward: not set; a prompt's value is what completions earn: give reward=NAME or reward=DIR")
    reward, asked = target(config.reward), settings(config["values"], ValueSettings)
    source, data = build(config.data, DataSettings)
    choice, _ = build(config.model, ModelSettings)
    tokenizer = choice.tokenizer(source, _training(source, data))
    prompts = prompts_of(source, data, tokenizer, asked.max_new_tokens, choice.context())
    if config.dry_run:
        console.print(OmegaConf.to_yaml(config, resolve=True), highlight=False, markup=False, soft_wrap=True)
        console.print(f"{len(prompts):,} prompts, {asked.samples} completions each")
        return
    from shiqrun.models.reference import weights_fingerprint

    model, device = choice.build(tokenizer, config.seed), target(config.hardware).device()
    made_with = asked.made_with(weights_fingerprint(model), reward)
    cache = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    kept = ValueFile(cache / "values" / f"{key_of(made_with)}.jsonl", made_with)
    reward.to(device)
    policy = Policy(model, autocast=target(config.hardware).autocast()).eval().to(device)
    new = estimate(policy, prompts, tokenizer, reward, asked, kept, progress=track)
    found = _write(run_dir, kept, {p.prompt_id for p in prompts}, config.beta)
    about = {**made_with, **{f"reward/{k}": v for k, v in reward.about().items()}}
    told = {"prompts": len(prompts), "prompts_computed": new, "seconds": time.perf_counter() - began}
    write_json(run_dir / "summary.json", {**found, **told, **about, **provenance()})
    _tell(run_dir, found, len(prompts), new)


def _training(source: Any, data: Any) -> Any:
    from shiqrun.data.module import examples_of

    return examples_of(source, "train", data)


def _write(run_dir: Path, kept: "ValueFile", wanted: set[str], beta: float | None) -> dict[str, Any]:
    """The two files of these prompts, and what they say."""
    from shiqrun.losses.soft_value import soft_value
    from shiqrun.rollout.value_file import read_values

    header, rows, _ = read_values(kept.path)
    rows = [row for row in rows if row["prompt_id"] in wanted]
    with replacing(run_dir / FILE) as values, replacing(run_dir / TRAJECTORIES) as trajectories:
        print(json.dumps(header), file=values)
        for row in rows:
            for file in (values, trajectories):
                print(json.dumps(row, ensure_ascii=False), file=file)
    rewards = [kept.rewards[row["prompt_id"]] for row in rows]
    best = max((r.max() for r in rewards), default=0.0)
    found: dict[str, Any] = {
        "values/reward_mean": sum(r.mean() for r in rewards) / len(rewards),
        "values/reward_max": float(best),
        "values/prompts_without_best": sum(r.max() < best for r in rewards) / len(rewards),
    }
    if beta:
        soft = [soft_value(r, beta) for r in rewards]
        found |= {
            "beta": beta,
            "values/q0_mean": sum(s.value for s in soft) / len(soft),
            "values/q0_error_mean": sum(s.error for s in soft) / len(soft),
        }
    return found


def _tell(run_dir: Path, found: dict[str, Any], prompts: int, new: int) -> None:
    from shiqrun.console import console, number

    table = Table(title=f"values of {prompts:,} prompts, {new:,} of them computed now", title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    for name, value in found.items():
        table.add_row(name, number(float(value)))
    console.print(table)
    console.print(f"use them: shiqrun train algo=spo algo.values={run_dir / FILE}", highlight=False, soft_wrap=True)
    console.print(f"the completions: data=jsonl data.path={run_dir / TRAJECTORIES}", highlight=False, soft_wrap=True)
