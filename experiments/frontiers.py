"""`python -m experiments.frontiers DIR...` compares methods at equal KL, with intervals over prompts and seeds.

DIR are sweeps of runs that sampled answers to the same prompts (`make hh`). The first table gives each method and beta:
its reward with two 95 % intervals, Student's t over seeds and a bootstrap over prompts and seeds, its KL and length.
The second gives each method's reward at a KL, read off its frontier: the line through its points (one a beta, and the
reference at KL 0) without those that another point beats in both, level after its last one; and the difference from the
first method: both methods have the same resampled prompts, and their own seeds. Nothing is said of a KL beyond a
method's largest.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from shiqrun.api.run import Run
from shiqrun.console import console
from shiqrun.errors import InputError
from shiqrun.report.run_records import collect_runs
from shiqrun.report.seed_groups import method_names
from shiqrun.util.intervals import interval

RESAMPLES = 2000


@dataclass(frozen=True)
class Answers:
    """The `Answers` of a method at one beta to the same prompts, one row a seed.

    Attributes:
        reward: of each answer, `[S, P]`, reward units.
        kl: log-ratio of each answer, `[S, P]`, nats; its mean estimates the KL.
        tokens: of each answer, `[S, P]`.
        reference: reward of the reference's answer, `[P]`, reward units.
    """

    reward: np.ndarray
    kl: np.ndarray
    tokens: np.ndarray
    reference: np.ndarray


Methods = dict[str, dict[float, Answers]]
"""Answers by beta, of each method."""


def read_methods(directories: Sequence[Path]) -> Methods:
    """Return the last answers of every finished run below some directories, by method and beta.

    Raises:
        InputError: no run, or runs whose prompts differ.
    """
    runs = [run for run in collect_runs(directories).runs if run.summary and run.beta is not None]
    if not runs:
        raise InputError(f"{', '.join(map(str, directories))}: no finished run of a method with a beta")
    found: dict[str, dict[float, list[np.ndarray]]] = {}
    prompts: list[str] | None = None
    for name, run in zip(method_names(runs), runs, strict=True):
        rows = Run(run.directory).completions()
        rows = rows[rows["step"] == rows["step"].max()].sort_values("prompt_id")
        asked = rows["prompt_id"].tolist()
        if prompts not in (None, asked):
            raise InputError(f"{run.directory}: its prompts are not those of the runs before it")
        prompts = asked
        columns = rows[["reward", "kl", "tokens", "reference_reward"]].to_numpy(float)
        found.setdefault(name, {}).setdefault(float(run.beta or 0), []).append(columns)
    return {name: {beta: _stacked(by_beta[beta]) for beta in sorted(by_beta)} for name, by_beta in found.items()}


def _stacked(seeds: list[np.ndarray]) -> Answers:
    """Return the answers of several seeds as one table each."""
    table = np.stack(seeds)
    return Answers(table[..., 0], table[..., 1], table[..., 2], table[0, :, 3])


def reward_at(methods: dict[float, Answers], kl: float, prompts: np.ndarray, seeds: dict[float, np.ndarray]) -> float:
    """Return a method's reward at a KL on resampled prompts and seeds; NaN where none of its points goes so far."""
    points = [(0.0, float(next(iter(methods.values())).reference[prompts].mean()))]
    for beta, answers in methods.items():
        chosen = np.ix_(seeds[beta], prompts)
        points.append((float(answers.kl[chosen].mean()), float(answers.reward[chosen].mean())))
    at, values = zip(*frontier(points), strict=True)
    return float(np.interp(kl, at, values)) if kl <= max(points)[0] else math.nan


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (KL, reward) whose reward is larger than that of every point with less KL, by KL."""
    best, kept = -math.inf, []
    for kl, reward in sorted(points):
        if reward > best:
            kept.append((kl, reward))
            best = reward
    return kept


def resamples(methods: dict[float, Answers], kl: float) -> np.ndarray:
    """Return a method's reward at a KL on the prompts and seeds that were run, and then on resamples of both, `[1+R]`.

    Resample r has the same prompts for every method.
    """
    size = len(next(iter(methods.values())).reference)
    values = [reward_at(methods, kl, np.arange(size), {b: np.arange(len(a.reward)) for b, a in methods.items()})]
    for r in range(RESAMPLES):
        prompts = np.random.default_rng([0, r]).integers(size, size=size)
        draw = np.random.default_rng([1, r])
        seeds = {b: draw.integers(len(a.reward), size=len(a.reward)) for b, a in methods.items()}
        values.append(reward_at(methods, kl, prompts, seeds))
    return np.array(values)


def both_ways(answers: Answers) -> tuple[float, float]:
    """Return the bounds of the 95 % bootstrap interval of the mean reward over prompts and seeds."""
    draw, (seeds, prompts) = np.random.default_rng(0), answers.reward.shape
    means = [
        answers.reward[np.ix_(draw.integers(seeds, size=seeds), draw.integers(prompts, size=prompts))].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def points_table(methods: Methods) -> Table:
    """Return a table of each method and beta."""
    table = Table("method", "beta", "seeds", "reward", "over prompts and seeds", "KL, nats", "tokens")
    for name, by_beta in methods.items():
        for beta, a in by_beta.items():
            low, high = both_ways(a)
            row = (_plus_minus(a.reward.mean(1)), f"{low:.3f} to {high:.3f}", _plus_minus(a.kl.mean(1), 1))
            table.add_row(name, f"{beta:g}", str(len(a.reward)), *row, f"{a.tokens.mean():.0f}")
    return table


def equal_kl_table(methods: Methods, budgets: Iterable[float]) -> Table:
    """Return a table of each method's reward at some KLs, and of its difference from the first method."""
    first, *_ = methods
    table = Table("method", "KL, nats", "reward", f"less {first}", title="reward at equal KL")
    for kl in budgets:
        found = {name: resamples(by_beta, kl) for name, by_beta in methods.items()}
        for name, values in found.items():
            difference = "" if name == first else _estimate(values - found[first])
            table.add_row(name, f"{kl:g}", _estimate(values), difference)
    return table


def _estimate(values: np.ndarray) -> str:
    """Return `value (low to high)` of an estimate and its resamples; a KL beyond a twentieth of them has none."""
    if math.isnan(values[0]) or np.isnan(values[1:]).mean() > 0.05:
        return "not reached"
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return f"{values[0]:.3f} ({low:.3f} to {high:.3f})"


def _plus_minus(values: np.ndarray, digits: int = 3) -> str:
    """Return `mean ± half` with the half width of the 95 % interval over seeds."""
    mean, half = interval(values.tolist())
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--kl", default="1.5,2,3,4", help="KLs of the second table, nats (default: 1.5,2,3,4)")
    options = parser.parse_args(words)
    methods = read_methods(options.directories)
    console.print(points_table(methods))
    console.print(equal_kl_table(methods, map(float, options.kl.split(","))))


if __name__ == "__main__":
    main()
