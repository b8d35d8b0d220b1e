"""`shiqrun eval eval.policy=ground_truth`, and what every evaluation writes."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from shiqrun.config.validate import build
from shiqrun.errors import InputError

if TYPE_CHECKING:
    from shiqrun.settings import AnswerSettings


def played_by_reference(config: DictConfig, run_dir: Path, asked: "AnswerSettings") -> None:
    """Plays the reference answers of data=bfcl through the runner that plays policies.

    Raises:
        InputError: a run, a reference or a reward is given, or data that has no episodes.
    """
    from shiqrun.batching.logged_data import DataSettings
    from shiqrun.console import console
    from shiqrun.data.bfcl import Bfcl
    from shiqrun.evaluation.answer_files import write_answers
    from shiqrun.evaluation.episodes import chosen_dialogues, reference_answers

    began = time.perf_counter()
    for key in ("run", "reference"):
        if config[key]:
            raise InputError(f"eval.policy=ground_truth plays no model; leave out {key}={config[key]}")
    source, data = build(config.data, DataSettings)
    if not isinstance(source, Bfcl):
        raise InputError(f"eval.policy=ground_truth is for data=bfcl; data={config.data.name} has no reference answers")
    refuse_beside_episodes(config.get("reward"), asked)
    dialogues = chosen_dialogues(source.evaluated(), asked.max_prompts, data.limit)
    if config.dry_run:
        console.print(OmegaConf.to_yaml(config, resolve=True), highlight=False, markup=False, soft_wrap=True)
        console.print(f"{len(dialogues)} samples, played by their reference answers")
        return
    evaluation = reference_answers(dialogues, source.rules)
    write_answers(run_dir, evaluation)
    about = {"exact": False, "beta": None, "policy": "ground_truth"}
    about |= {"data": config.data.name, "data/split": source.split}
    title = f"reference answers of {config.data.name}, data.split={source.split}"
    write_result(run_dir, evaluation.metrics, about, asked, seconds=time.perf_counter() - began, title=title)


def refuse_beside_episodes(reward: Any, asked: "AnswerSettings") -> None:
    """Refuses settings of answers to prompts, which say nothing about episodes.

    Raises:
        InputError: a reward, or `eval.split`.
    """
    if reward:
        raise InputError("reward: data=bfcl judges every turn by its functions; leave it out")
    if asked.split != "val":
        raise InputError(f"eval.split={asked.split}: which samples of data=bfcl are played is said by data.split")


def write_result(
    run_dir: Path,
    metrics: dict[str, float],
    about: dict[str, Any],
    asked: "AnswerSettings",
    *,
    seconds: float,
    title: str,
) -> None:
    """`eval.json`, and its table on the terminal."""
    from shiqrun.console import console
    from shiqrun.evaluation.completion_files import result_table
    from shiqrun.training.artifacts import provenance, write_json

    found = {f"eval/{name}": value for name, value in metrics.items()}
    known = {name: value if math.isfinite(value) else None for name, value in found.items()}  # JSON has no NaN
    asked_for = {f"settings/{key}": value for key, value in sorted(vars(asked).items())}
    write_json(run_dir / "eval.json", {**known, "seconds": seconds, **about, **asked_for, **provenance()})
    console.print(result_table(found, title=title))
    console.print(run_dir / "eval.json", highlight=False)
