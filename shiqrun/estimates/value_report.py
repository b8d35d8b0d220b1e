"""`shiqrun values` writes its results: one line per prompt, the completions as a data set, and a table of figures."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from shiqrun.batching.logged_data import Split
from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.console import number
from shiqrun.estimates.prompt_values import prompt_key
from shiqrun.estimates.value_cache import ValuedPrompts
from shiqrun.losses.soft_value import soft_value
from shiqrun.sampling.prompts import Prompt
from shiqrun.util.atomic import atomic_writer
from shiqrun.util.jsonl import encode_line

log = logging.getLogger("shiqrun")

FILE = "values.jsonl"
TRAJECTORIES: dict[Split, str] = {"train": "trajectories.jsonl", "val": "trajectories_val.jsonl"}
WORDS = {
    "values/success_rate": "right completions",
    "values/prompts_never_right": "prompts never solved",
    "values/prompts_always_right": "prompts always solved",
    "values/reward_mean": "reward, mean",
    "values/reward_max": "reward, largest",
    "values/prompts_without_largest": "prompts that never earned it",
    "values/q0_mean": "Q0, mean over prompts",
    "values/q0_error_mean": "its standard error in one prompt, mean",
    "values/cut_off": "completions cut off at values.max_new_tokens",
}
WITHOUT_RIGHT = ("values/reward_max", "values/prompts_without_largest")
"""Figures for rewards that call no completion right or wrong; otherwise the success rates say the same."""
SHARES = {name for name in WORDS if name.endswith(("rate", "right", "without_largest", "cut_off"))}


def write_values(
    run_dir: Path,
    values: ValuedPrompts,
    splits: Mapping[Split, Sequence[Prompt]],
    *,
    own_val: bool,
    right: float | None,
    beta: float | None,
) -> dict[str, float]:
    """Write `values.jsonl` and the sampled completions, in the order of the prompts; return figures over all prompts.

    Args:
        run_dir: directory of the files.
        values: rewards of the prompts.
        splits: the prompts, at least one in all.
        own_val: completions of the validation split get a file of their own, `trajectories_val.jsonl`; otherwise one
            file has all, and its prompts are held out as those of the data were.
        right: reward of a right completion, with which the success rate is written; None where nothing is right.
        beta: reward units per nat, at which Q0 and its standard error are written; None or 0 leaves them out.
    """
    lines, cut, without = list[dict[str, Any]](), 0, 0
    groups: dict[Split, Sequence[Prompt]] = {"train": [p for prompts in splits.values() for p in prompts]}
    if own_val:
        groups = dict(splits)
    with atomic_writer(run_dir / FILE) as file:
        file.write(_sealed({**values.file.header, "beta": beta}))
        for split, prompts in groups.items():
            with atomic_writer(run_dir / TRAJECTORIES[split]) as trajectories:
                for prompt, row in zip(prompts, values.file.rows(map(prompt_key, prompts)), strict=True):
                    cut += row.pop("cut_off")
                    row = {"prompt_id": prompt.prompt_id} | {k: v for k, v in row.items() if k != "asked"}
                    worth = _worth(values.known[prompt.prompt_id].rewards, right, beta)
                    named = {"prompt_id": prompt.prompt_id, "prompt_tokens": tokens_key(prompt.tokens)}
                    lines.append({**named, **worth})
                    file.write(_sealed(lines[-1] | {"rewards": row["rewards"]}))
                    without += "completion_ids" not in row
                    print(json.dumps(row, ensure_ascii=False), file=trajectories)
    if cut and without:
        log.warning(
            f"{run_dir / TRAJECTORIES['train']}: completions of {without} prompts come from an older version's cache "
            "and have no token ids; training on those that were cut off would end them with a token never sampled"
        )
    rewards = [values.known[p.prompt_id].rewards for prompts in groups.values() for p in prompts]
    return _figures(rewards, lines) | {"values/cut_off": cut / sum(map(len, rewards))}


def _sealed(row: Mapping[str, Any]) -> str:
    """Return a row as a line with a hash, so that a changed value is found when it is read."""
    return encode_line(row, sealed=True).decode()


def _worth(rewards: np.ndarray, right: float | None, beta: float | None) -> dict[str, float]:
    """Return the success rate and the soft value Q0 of one prompt, as far as they are known."""
    found = {} if right is None else {"success_rate": float((rewards == right).mean())}
    if beta:
        soft = soft_value(rewards, beta)
        found["q0"] = soft.value
        found |= {"q0_error": soft.error} if math.isfinite(soft.error) else {}  # of one completion it is not known
    return found


def _figures(rewards: Sequence[np.ndarray], lines: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return figures of all prompts: means over prompts, and shares of prompts."""
    largest = max(float(r.max()) for r in rewards)
    found = {}
    if "success_rate" in lines[0]:
        rates = [line["success_rate"] for line in lines]
        found = {
            "values/success_rate": sum(rates) / len(rates),
            "values/prompts_never_right": sum(rate == 0 for rate in rates) / len(rates),
            "values/prompts_always_right": sum(rate == 1 for rate in rates) / len(rates),
        }
    found |= {
        "values/reward_mean": sum(float(r.mean()) for r in rewards) / len(rewards),
        "values/reward_max": largest,
        "values/prompts_without_largest": sum(bool(r.max() < largest) for r in rewards) / len(rewards),
    }
    for name in ("q0", "q0_error"):
        if name in lines[0]:
            found[f"values/{name}_mean"] = sum(line[name] for line in lines) / len(lines)
    return found


def value_table(figures: dict[str, float], beta: float | None) -> Table:
    """Return the figures on prompt values as a table for the terminal."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    left_out = WITHOUT_RIGHT if "values/success_rate" in figures else ()
    for name, words in WORDS.items():
        if name in figures and name not in left_out:
            words += f" (beta {number(float(beta or 0))})" * (name == "values/q0_mean")
            table.add_row(words, f"{figures[name]:.1%}" if name in SHARES else number(figures[name]))
    return table
