"""`shiqrun score` labels the completions of a data set with a reward, in the columns that data=jsonl reads."""

import json
import logging
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, MinLen
from omegaconf import DictConfig
from rich.table import Table

from shiqrun.config.choices import build_data, build_reward
from shiqrun.config.run_directory import default_cache_dir
from shiqrun.config.validate import COMMON_NODES, Schema, target
from shiqrun.errors import InputError
from shiqrun.util.atomic import atomic_writer
from shiqrun.util.summary import is_finished, write_summary

if TYPE_CHECKING:
    from shiqrun.batching.logged_data import Split
    from shiqrun.data.jsonl_rows import Form
    from shiqrun.rewards.labels import Labelled
    from shiqrun.rewards.reward import Reward

log = logging.getLogger("shiqrun")
SCHEMA = Schema(
    root="shiqrun.commands.score.Root",
    nodes=COMMON_NODES,
    groups=[*COMMON_NODES],
)
FILES = {"train": "scored.jsonl", "val": "scored_val.jsonl"}
USED = {"train": "data.path", "val": "data.val_path"}
COLUMNS = ("examples", "completions", "score_mean", "score_std", "score_min", "score_max")


@dataclass(frozen=True, kw_only=True)
class Root:
    """`Root` holds the keys of `conf/score.yaml` that are no nodes."""

    seed: Annotated[int, Ge(0)]
    run_dir: Annotated[str, MinLen(1)]
    resume: Annotated[str, MinLen(1)] | None
    dry_run: bool
    cache_dir: Annotated[str, MinLen(1)] | None
    reward: Any = None


def run(config: DictConfig, run_dir: Path) -> None:
    """Score the completions of a data set into `run_dir`, or only print what would be scored."""
    from shiqrun.batching.logged_data import both_splits
    from shiqrun.console import console, say_dry_run, track
    from shiqrun.rewards.labels import ScoreCache, label, statistics
    from shiqrun.rewards.units import SCORED_BY
    from shiqrun.training.artifacts import provenance

    if is_finished(run_dir):
        console.print(f"{run_dir} is finished; see its summary.json")
        return
    began, dropped = time.perf_counter(), Counter[str]()
    if parts := config.data.get("parts"):
        raise InputError(
            f"data=mixture: score its parts ({', '.join(parts)}) one at a time, as in data=jsonl data.path=FILE, and "
            "mix the files that this writes"
        )
    reward = _reward(config)
    source, data = build_data(_without_set_rewards(config.data))
    given = [*track(both_splits(source, data, dropped), "reading examples")]
    _expect(given, dropped, config.data.name)
    if config.dry_run:
        console.print(f"{sum(len(e.completions) for _, e in given):,} completions of {len(given):,} examples to score")
        say_dry_run()
        return
    cache = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    kept = ScoreCache(reward, cache, data.max_length)
    labelled = label(given, kept, dropped, lambda chunks, what: track(chunks, what))
    _expect(labelled, dropped, config.data.name)
    seen = _warn_of_seen(reward, labelled)
    files = _write(run_dir, labelled, own_val="val" in source.splits)
    found = statistics(labelled)
    verdicts = Counter(word for x in labelled for word in x.verdicts or ())
    found |= {f"verdict/{word}": number for word, number in verdicts.most_common()}
    about = {
        "val/prompts_seen_by_reward": seen,
        **{f"reward/{key}": value for key, value in reward.about().items()},
        SCORED_BY: reward.fingerprint(),
        **{"data": config.data.name, "scores_from_cache": kept.found, "scores_computed": kept.computed},
        **{f"dropped/{why}": number for why, number in dropped.items()},
        **{"seconds": time.perf_counter() - began, "seed": config.seed},
    }
    write_summary(run_dir, {**found, **about, **provenance()})  # written last: marks the end
    _tell(config, found, dropped, files, f"{kept.computed:,} scores computed, {kept.found:,} read from {kept.folder}")


def _reward(config: DictConfig) -> "Reward":
    """Return the reward, loaded and on the device where it is to compute."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    if not config.get("reward"):
        raise InputError("reward: not set; give reward=DIR, the directory or Hub id of a reward model, or reward=NAME")
    disable_progress_bar()
    set_verbosity_error()
    reward = build_reward(config.reward)
    reward.to(target(config.hardware).device())
    reward.fingerprint()
    return reward


def _without_set_rewards(data: DictConfig) -> DictConfig:
    """Return the data set's node without rewards of pairs and labels, which scoring needs only to choose by them."""
    bare = data.copy()
    for key in ("pair_rewards", "label_rewards"):
        if key in bare and bare.completions == "all":
            bare[key] = None
    return bare


def _expect(examples: Sequence[Any], dropped: Counter[str], name: str) -> None:
    if not examples:
        reasons = ", ".join(f"{number} {why}" for why, number in dropped.most_common()) or "the data set is empty"
        raise InputError(f"data={name}: no completion to score: {reasons}")


def _warn_of_seen(reward: "Reward", labelled: Sequence["Labelled"]) -> bool:
    """Warn if the reward model was trained on validation prompts, where its scores say little; return whether."""
    try:
        reward.refuse_seen([x.example.messages for x in labelled if x.split == "val"])
    except InputError as error:
        log.warning(f"validation split: {error}")
        return True
    return False


def _write(run_dir: Path, labelled: Sequence["Labelled"], *, own_val: bool) -> dict["Split", Path]:
    """Write the files of scored examples, each whole or not at all; one for both splits if the reader splits alike."""
    from shiqrun.data.jsonl_rows import form_of

    form = form_of(x.example for x in labelled)
    parts: dict[Split, list[Labelled]] = {"train": [*labelled]}
    if own_val:
        parts = {split: [x for x in labelled if x.split == split] for split in ("train", "val")}
    return {split: _write_file(run_dir / FILES[split], part, form) for split, part in parts.items() if part}


def _write_file(path: Path, labelled: Sequence["Labelled"], form: "Form") -> Path:
    from shiqrun.data.jsonl_rows import row_of

    with atomic_writer(path) as file:
        for x in labelled:
            row = row_of(x.example, x.scores, form) | _verdicts(x.verdicts, form)
            print(json.dumps(row, ensure_ascii=False, default=str), file=file)
    return path


def _verdicts(words: Sequence[str] | None, form: "Form") -> dict[str, Any]:
    """Return the columns with the verdict on each completion, where the reward gives verdicts."""
    if words is None:
        return {}
    if form == "pair":
        return {"verdict_chosen": words[0], "verdict_rejected": words[1]}
    return {"verdict": words[0]} if form == "single" else {"verdicts": [*words]}


def _tell(
    config: DictConfig, found: dict[str, Any], dropped: Counter[str], files: dict["Split", Path], where: str
) -> None:
    """Print the statistics of the scores, and how to train on them."""
    from shiqrun.console import console, number, say_next

    table = Table(
        title=f"scores of {config.data.name} by {config.reward.get('path') or config.reward.name}", title_justify="left"
    )
    pairs = any(key.endswith("/accuracy") for key in found)
    columns = [*COLUMNS, *(["accuracy"] if pairs else [])]
    for name in ("split", *columns):
        table.add_column(name.removeprefix("score_"), justify="left" if name == "split" else "right")
    for split in ("train", "val"):
        cells = [number(found[key]) if (key := f"{split}/{name}") in found else "-" for name in columns]
        if f"{split}/accuracy_ci95" in found:
            cells[-1] += f" ± {number(found[f'{split}/accuracy_ci95'])}"
        table.add_row(split, *cells)
    console.print(table)
    verdicts = {key.removeprefix("verdict/"): n for key, n in found.items() if key.startswith("verdict/")}
    if verdicts:
        console.print(", ".join(f"{word} {n:,}" for word, n in verdicts.items()))
    if pairs:
        console.print("accuracy: share of pairs whose chosen answer has the higher score, with its 95 % interval")
    for why, count in dropped.most_common():
        console.print(f"left out: {count:,} {why}")
    console.print(where, highlight=False, soft_wrap=True)
    words = [f"{key}={shlex.quote(str(files[s]))}" for s, key in USED.items() if s in files]
    words += [] if "val" in files else [f"data.val_fraction={config.data.val_fraction}"]
    say_next("shiqrun train data=jsonl " + " ".join(words))
