"""`read_answers` reads what a run's policy earned on each prompt of a split; `Answers` aligns it over runs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shiqrun.errors import InputError
from shiqrun.report.run_records import RunRecord

HeldOut = Literal["val", "test"]
FILES: dict[HeldOut, tuple[str, ...]] = {"val": ("val.jsonl", "samples.jsonl"), "test": ("test.jsonl",)}
"""The files of a run directory with rows of each split, the first that is there counts."""
TIE = 1e-5
"""Rewards that differ by less, relatively, are a draw; as in evaluations."""
REWARD, KL, WIN, REFERENCE, TOKENS = "reward", "kl", "win", "reference", "tokens"
NAMES = (REWARD, KL, WIN, REFERENCE, TOKENS)


@dataclass(frozen=True, eq=False)
class Answers:
    """`Answers` hold what the policies of some runs, one a seed, earned on the same prompts.

    Attributes:
        seeds: of the runs.
        prompts: that all of them answered.
        values: `[S, P]` by name: reward, kl, win (over the reference, a draw is a half), reference (its reward), tokens
            (of the answer); those that were measured.
    """

    seeds: list[str]
    prompts: list[str]
    values: dict[str, np.ndarray]

    def on(self, prompts: Sequence[str], name: str) -> np.ndarray:
        """Return the values of some of the prompts, `[S, P]`."""
        place = {prompt: n for n, prompt in enumerate(self.prompts)}
        return self.values[name][:, [place[prompt] for prompt in prompts]]


def answers_of(runs: Sequence[RunRecord], split: HeldOut) -> Answers | None:
    """Return the answers of runs that differ in their seed alone; None where none has rows of the split.

    Raises:
        InputError: a row is broken.
    """
    found = [(run, rows) for run in runs if (rows := read_answers(run.directory, split))]
    if not found:
        return None
    prompts = [prompt for prompt in found[0][1] if all(prompt in rows for _, rows in found)]
    if not prompts:
        return None
    names = [name for name in NAMES if all(name in rows[prompt] for _, rows in found for prompt in prompts)]
    values = {name: np.array([[rows[prompt][name] for prompt in prompts] for _, rows in found]) for name in names}
    return Answers([str(run.seed) for run, _ in found], prompts, values)


def read_answers(directory: Path, split: HeldOut, *, first: bool = False) -> dict[str, dict[str, float]]:
    """Return what a policy earned on each prompt of a split after its last step: means over its answers.

    Args:
        directory: of the run.
        split: of the prompts.
        first: before the first step instead, where the policy is the reference; empty where it answered none then.

    Raises:
        InputError: a row is no JSON object.
    """
    names = FILES[split][-1:] if first else FILES[split]  # val.jsonl has the answers of the trained policy alone
    file = next((directory / name for name in names if (directory / name).is_file()), None)
    rows = [] if file is None else _rows_of_a_step(file, first=first)
    by_prompt: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        by_prompt.setdefault(f"{row['prompt_id']}\n{row.get('prompt', '')}", []).append(_figures(row))
    return {
        prompt: {name: math.fsum(r[name] for r in own) / len(own) for name in NAMES if all(name in r for r in own)}
        for prompt, own in by_prompt.items()
    }


def _rows_of_a_step(file: Path, *, first: bool) -> list[dict[str, Any]]:
    """Return the rows of the last step that has any with a prompt's id, or those from before the first step."""
    rows = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows += [row] if "prompt_id" in row and int(row["step"]) >= 0 else []
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{file}:{number}: no row of an evaluation ({error}); restore the file") from error
    step = 0 if first else max((row["step"] for row in rows), default=0)
    return [row for row in rows if row["step"] == step]


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of one answer."""
    given = {REWARD: row.get("reward"), KL: row.get("kl"), REFERENCE: row.get("reference_reward")}
    given[TOKENS] = row.get("tokens")
    found = {name: float(value) for name, value in given.items() if isinstance(value, int | float)}
    if REWARD in found and REFERENCE in found and row.get("reference_completion") is not None:
        draw = row.get("completion") == row["reference_completion"]
        draw = draw or math.isclose(found[REWARD], found[REFERENCE], rel_tol=TIE, abs_tol=TIE)
        found[WIN] = 0.5 if draw else float(found[REWARD] > found[REFERENCE])
    return found
