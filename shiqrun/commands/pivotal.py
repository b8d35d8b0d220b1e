"""`shiqrun pivotal` finds the tokens of logged trajectories at which the reference's chance of success jumps."""

import heapq
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, MinLen
from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from shiqrun.config.choices import build_data, build_reward
from shiqrun.config.run_directory import default_cache_dir
from shiqrun.config.validate import COMMON_NODES, Schema, build, settings, target
from shiqrun.errors import InputError
from shiqrun.util.atomic import atomic_writer
from shiqrun.util.quoting import quote_for_shell
from shiqrun.util.summary import write_summary

if TYPE_CHECKING:
    from shiqrun.estimates.jsonl_cache import JsonlCache
    from shiqrun.estimates.pivotal_settings import PivotalSettings
    from shiqrun.estimates.prefix_sampler import PrefixSampler, SearchedTrajectory

SCHEMA = Schema(
    root="shiqrun.commands.pivotal.Root",
    nodes={**COMMON_NODES, "pivotal": "shiqrun.estimates.pivotal_settings.PivotalSettings"},
    groups=[*COMMON_NODES],
)
FILE, ROLLOUTS = "pivotal.jsonl", "rollouts.jsonl"
SHOWN = 3
"""Trajectories on the terminal."""
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class Root:
    """`Root` holds the keys of `conf/pivotal.yaml` that are no nodes."""

    seed: Annotated[int, Ge(0)]
    run_dir: Annotated[str, MinLen(1)]
    resume: Annotated[str, MinLen(1)] | None
    dry_run: bool
    cache_dir: Annotated[str, MinLen(1)] | None
    reward: Any = None


def run(config: DictConfig, run_dir: Path) -> None:
    """Search trajectories for pivotal tokens, into `run_dir`, or only print how many there are."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from shiqrun.batching.logged_data import examples_of
    from shiqrun.console import console, say_dry_run, track
    from shiqrun.estimates.jsonl_cache import JsonlCache, lock_cache
    from shiqrun.estimates.pivotal_inputs import choose_trajectories, score_trajectories
    from shiqrun.estimates.pivotal_search import KIND, search
    from shiqrun.estimates.pivotal_settings import PivotalSettings
    from shiqrun.estimates.prefix_sampler import PrefixSampler
    from shiqrun.estimates.prompt_values import settings_key
    from shiqrun.models.policy import ModelSettings, Policy
    from shiqrun.models.precision import build_model
    from shiqrun.models.reference import weights_fingerprint
    from shiqrun.report.run_report import write_report
    from shiqrun.training.artifacts import provenance

    disable_progress_bar()
    set_verbosity_error()
    began = time.perf_counter()
    if not config.get("reward"):
        raise InputError(
            "reward: not set; success is what a reward calls right: give reward=NAME, as reward=unit_tests"
        )
    reward, asked = build_reward(config.reward), settings(config.pivotal, PivotalSettings)
    source, data = build_data(config.data)
    choice, _ = build(config.model, ModelSettings)
    tokenizer = choice.tokenizer(source, examples_of(source, "train", data))
    chosen, dropped = choose_trajectories(source, data, tokenizer, asked, reward, choice.context())
    if config.dry_run:
        console.print(f"{len(chosen):,} trajectories, {asked.rollouts} rollouts from each position that is visited")
        say_dry_run()
        return
    hardware = target(config.hardware)
    model = build_model(choice, tokenizer, config.seed, hardware.dtype)
    reward.to(hardware.device())
    policy = Policy(model, autocast=hardware.autocast()).eval().to(hardware.device())
    trajectories = score_trajectories(policy, chosen, tokenizer)
    made_with = asked.made_with(weights_fingerprint(model), reward)
    cache = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    path, before = cache / "pivotal" / f"{settings_key(made_with)}.jsonl", time.perf_counter()
    with lock_cache(path, "searches"):
        kept, estimates = JsonlCache(path, KIND, made_with), PrefixSampler(policy, tokenizer, reward, asked)
        new = search(estimates, trajectories, kept, track)
    found = _write(run_dir, kept, trajectories, asked) | _cost(estimates, time.perf_counter() - before, new)
    about = {**made_with, **{f"dropped/{why}": n for why, n in dropped.items()}}
    about |= {"seconds": time.perf_counter() - began}
    write_summary(run_dir, {**found, **about, **provenance()})  # written last: marks the end
    _tell(run_dir, found, kept, trajectories, write_report([run_dir]))


def _write(
    run_dir: Path, kept: "JsonlCache", trajectories: Sequence["SearchedTrajectory"], asked: "PivotalSettings"
) -> dict[str, Any]:
    """Write the rollouts of all searches as a data set of trajectories; return the figures over all searches."""
    count = Counter[str]()
    with atomic_writer(run_dir / FILE) as searches, atomic_writer(run_dir / ROLLOUTS) as rollouts:
        searches.write(json.dumps(kept.header) + "\n")
        given: set[str] = set()
        for row in kept.rows(dict.fromkeys(trajectory.name for trajectory in trajectories)):
            said = _rollouts(row, given)
            if said["completions"]:
                rollouts.write(json.dumps(said, ensure_ascii=False) + "\n")
            searches.write(json.dumps(row, ensure_ascii=False) + "\n")
            count["trajectories"] += 1
            if row["searched"]:
                count["searched"] += 1
                count["positions"] += len(row["visited"])
                count["positions_there"] += len(row["tokens"]) + 1
                count["found"] += len(row["pivots"])
                count["confirmed"] += sum(bool(pivot.get("confirmed")) for pivot in row["pivots"])
    if not asked.again:
        del count["confirmed"]
    return {f"pivotal/{name}": number for name, number in count.items()}


def _rollouts(row: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Return a search's rollouts as a data row, without those that an earlier search has given."""
    import numpy as np

    from shiqrun.batching.prompt_identity import tokens_key

    said: dict[str, Any] = {"completions": [], "rewards": []}
    for kind in ("visited", "again"):
        for seen in row[kind]:
            texts = seen.pop("texts", None)
            place = f"{kind} {row['prompt_tokens']} {tokens_key(np.array(row['input_ids'][: seen['at']]))}"
            if texts is not None and place not in given:
                given.add(place)
                said["completions"] += [[{"role": "assistant", "content": text}] for text in texts]
                said["rewards"] += seen["rewards"]
    about = {name: row[name] for name in ("prompt", "prompt_id", "answer") if name in row}
    return about | said


def _cost(estimates: "PrefixSampler", seconds: float, new: int) -> dict[str, Any]:
    return {
        "pivotal/trajectories_computed": new,
        "pivotal/rollouts": estimates.rollouts,
        "pivotal/rollouts_per_second": estimates.rollouts / seconds,
        "seconds/search": seconds,
    }


def _tell(
    run_dir: Path, found: dict[str, Any], kept: "JsonlCache", trajectories: Sequence["SearchedTrajectory"], page: Path
) -> None:
    from shiqrun.console import console, number, say_next

    table = Table(title="pivotal tokens", title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    for name, value in found.items():
        table.add_row(name, number(value))
    console.print(table)
    searched = (
        row for row in kept.rows(dict.fromkeys(trajectory.name for trajectory in trajectories)) if row["searched"]
    )
    for row in heapq.nlargest(SHOWN, searched, key=lambda row: len(row["rates"])):
        console.print(_picture(row), soft_wrap=True)
    console.print(f"the picture of more of them: {page}", highlight=False, soft_wrap=True)
    console.print(f"the rollouts: data=jsonl data.path={run_dir / ROLLOUTS}", highlight=False, soft_wrap=True)
    targets = f"algo.targets={quote_for_shell(run_dir / FILE)}"
    say_next(f"shiqrun train algo=spo algo.monte_carlo=1 {targets} data=... model=...")


def _picture(row: dict[str, Any]) -> Text:
    """Return a trajectory's tokens, each with the chance of success behind it; pivotal ones are underlined."""
    from shiqrun.report.pivotal_view import chance_along_tokens

    chances, pivots = chance_along_tokens(row), {p["at"]: p for p in row["pivots"]}
    text = Text(f"\n{row['prompt'][-1]['content'][:200]}\n", style="dim")
    text.append(f"{chances[0]:.2f} ")
    for t, token in enumerate(row["tokens"]):
        style = "green" if chances[t + 1] >= 0.5 else "red"
        bar = BLOCKS[min(int(chances[t + 1] * len(BLOCKS)), len(BLOCKS) - 1)]
        text.append(token, style=f"{style} underline bold" if t in pivots else style)
        text.append(bar, style=style)
    text.append(f" {chances[-1]:.2f}\n")
    for t, pivot in pivots.items():
        told = f"{pivot['before']:.2f} -> {pivot['after']:.2f} on fresh rollouts" if "before" in pivot else ""
        sure = (", confirmed" if pivot["confirmed"] else ", not confirmed") if "confirmed" in pivot else ""
        text.append(f"  {pivot['token'].strip()!r} (token {t + 1}): {pivot['first']:+.2f} {told}{sure}\n", style="dim")
    return text
