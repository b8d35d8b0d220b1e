"""`python -m experiments.frontiers DIR...` compares methods at equal KL, with intervals over prompts and seeds.

DIR are sweeps of runs that sampled answers to the same prompts (`make hh`). The first table gives each method and beta:
its reward with two 95 % intervals, Student's t over seeds and a bootstrap over prompts and seeds, and its KL.
The second gives each method's reward at a KL, read off its frontier: the line through its points (one a beta, and the
reference at KL 0) without those that another point beats in both, level after its last one; and the difference from one
method: both have the same resampled prompts, and their own seeds. The line is what mixtures of a method's policies
surely reach; betas between those that were run may do better. Nothing is said of a KL beyond a method's largest.

With --length-controlled rewards are those of answers as long as the reference's: a line through reward and tokens of
the reference's own answers says what a token is worth, and that is taken off for what an answer is longer or shorter.
The point at KL 0, the reference itself, stays as it is.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from shiqrun.console import console, waiting
from shiqrun.errors import InputError
from shiqrun.report.answers import KL, REFERENCE, REWARD, TOKENS, Answers, answers_of, read_answers
from shiqrun.report.run_records import RunRecord, collect_runs
from shiqrun.report.seed_groups import method_names
from shiqrun.util.intervals import interval

RESAMPLES = 2000
Methods = dict[str, dict[float, Answers]]
"""Answers by beta, of each method."""
Points = list[tuple[float, float]]
"""KL, nats, and reward of some policies."""


def read_methods(directories: Sequence[Path]) -> Methods:
    """Return the last answers of every finished run below some directories, by method and beta.

    Raises:
        InputError: no run, runs that were not scored, or runs whose prompts differ.
    """
    runs = [run for run in collect_runs(directories).runs if run.summary and run.beta is not None]
    if not runs:
        raise InputError(f"{', '.join(map(str, directories))}: no finished run of a method with a beta")
    found: dict[str, dict[float, list[RunRecord]]] = {}
    for name, run in zip(method_names(runs), runs, strict=True):
        found.setdefault(name, {}).setdefault(float(run.beta or 0), []).append(run)
    return {
        name: {beta: _answers(by_beta[beta], runs[0]) for beta in sorted(by_beta)} for name, by_beta in found.items()
    }


def _answers(runs: list[RunRecord], first: RunRecord) -> Answers:
    """Return the answers of runs that differ in their seed alone, to the prompts of the first run of all."""
    answers, asked = answers_of(runs, "val"), answers_of([first], "val")
    if answers is None or asked is None or not {REWARD, KL, REFERENCE} <= answers.values.keys():
        raise InputError(f"{runs[0].directory}: no scored answers; frontiers need eval.reward and a reference")
    if set(answers.prompts) != set(asked.prompts):
        raise InputError(f"{runs[0].directory}: its prompts are not those of {first.directory}")
    return Answers(answers.seeds, asked.prompts, {name: answers.on(asked.prompts, name) for name in answers.values})


def token_worth(directory: Path) -> tuple[float, float]:
    """Return what a token more is worth to the reference of a run, reward units, and the mean length of its answers.

    Raises:
        InputError: the run did not answer before its first step, or with answers of one length.
    """
    rows = [row for row in read_answers(directory, "val", first=True).values() if {REWARD, TOKENS} <= row.keys()]
    if len({row[TOKENS] for row in rows}) < 2:
        raise InputError(f"{directory}: --length-controlled needs scored answers of the reference, of several lengths")
    tokens, reward = (np.array([row[name] for row in rows]) for name in (TOKENS, REWARD))
    return float(np.polyfit(tokens, reward, 1)[0]), float(tokens.mean())


def length_controlled(answers: Answers, worth: float, length: float) -> Answers:
    """Return answers whose rewards are those of answers as long as the reference's.

    Args:
        answers: of some runs.
        worth: of a token more, reward units.
        length: mean of the reference's answers, tokens.
    """
    values = answers.values
    reward = values[REWARD] - worth * (values[TOKENS] - length)
    return Answers(answers.seeds, answers.prompts, {**values, REWARD: reward})


def frontier(points: Points) -> Points:
    """Return the points (KL, reward) whose reward is larger than that of every point with less KL, by KL."""
    best, kept = -math.inf, []
    for kl, reward in sorted(points):
        if reward > best:
            kept.append((kl, reward))
            best = reward
    return kept


def rewards_at(points: Points, budgets: Sequence[float]) -> list[float]:
    """Return the reward of the frontier of some points at some KLs; NaN beyond the largest KL of a point."""
    at, values = zip(*frontier(points), strict=True)
    return [float(np.interp(kl, at, values)) if kl <= max(points)[0] else math.nan for kl in budgets]


def resampled(by_beta: dict[float, Answers], budgets: Sequence[float]) -> np.ndarray:
    """Return a method's rewards at some KLs, `[1 + R, KLs]`: on what was run, then on resampled prompts and seeds.

    Resample r has the same prompts for every method.
    """
    first = next(iter(by_beta.values()))
    size = len(first.prompts)

    def rewards(prompts: np.ndarray, draw: np.random.Generator | None) -> list[float]:
        points = [(0.0, float(first.values[REFERENCE][0, prompts].mean()))]
        for answers in by_beta.values():
            count = len(answers.seeds)
            seeds = np.arange(count) if draw is None else draw.integers(count, size=count)
            kl, reward = (float(answers.values[name][np.ix_(seeds, prompts)].mean()) for name in (KL, REWARD))
            points.append((kl, reward))
        return rewards_at(points, budgets)

    rows = [rewards(np.arange(size), None)]
    for r in range(RESAMPLES):
        prompts = np.random.default_rng([0, r]).integers(size, size=size)
        rows.append(rewards(prompts, np.random.default_rng([1, r])))
    return np.array(rows)


def both_ways(reward: np.ndarray) -> tuple[float, float]:
    """Return the bounds of the 95 % bootstrap interval of the mean of `[S, P]` over both seeds and prompts."""
    draw, (seeds, prompts) = np.random.default_rng(0), reward.shape
    means = [
        reward[np.ix_(draw.integers(seeds, size=seeds), draw.integers(prompts, size=prompts))].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def points_table(methods: Methods) -> Table:
    """Return a table of each method and beta."""
    table = Table("method", "beta", "seeds", "reward", "over prompts and seeds", "KL, nats")
    for name, by_beta in methods.items():
        for beta, answers in by_beta.items():
            reward, kl = answers.values[REWARD], answers.values[KL]
            low, high = both_ways(reward)
            row = (_plus_minus(reward.mean(1)), f"{low:.3f} to {high:.3f}", _plus_minus(kl.mean(1), 1))
            table.add_row(name, f"{beta:g}", str(len(answers.seeds)), *row)
    return table


def equal_kl_table(methods: Methods, budgets: Sequence[float], against: str) -> Table:
    """Return a table of each method's reward at some KLs, and of its difference from the method `against`."""
    table = Table("method", "KL, nats", "reward", f"less {against}", title="reward at equal KL")
    found = {name: resampled(by_beta, budgets) for name, by_beta in methods.items()}
    for number, kl in enumerate(budgets):
        for name, values in found.items():
            difference = "" if name == against else _estimate(values[:, number] - found[against][:, number])
            table.add_row(name, f"{kl:g}", _estimate(values[:, number]), difference)
    return table


def _estimate(values: np.ndarray) -> str:
    """Return `value (low to high)` of an estimate and its resamples; one that a twentieth of them lack has none."""
    if math.isnan(values[0]) or np.isnan(values[1:]).mean() > 0.05:
        return "not reached"
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return f"{values[0]:.3f} ({low:.3f} to {high:.3f})"


def _plus_minus(values: np.ndarray, digits: int = 3) -> str:
    """Return `mean ± half` with the half width of the 95 % interval over seeds."""
    mean, half = interval(values.tolist())
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables.

    Raises:
        SystemExit: wrong input; the code is 2.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--kl", default="1.5,2,2.5,3,4", help="KLs of the second table, nats (default: 1.5,2,2.5,3,4)")
    parser.add_argument("--against", help="the method that differences are from (default: the first)")
    parser.add_argument(
        "--length-controlled", action="store_true", help="take off what length is worth to the reference"
    )
    options = parser.parse_args(words)
    try:
        methods = read_methods(options.directories)
        if options.length_controlled:
            worth, length = token_worth(collect_runs(options.directories).runs[0].directory)
            console.print(f"a token more is worth {worth:.4f} to the reference, whose answers have {length:.0f}")
            methods = {
                name: {beta: length_controlled(answers, worth, length) for beta, answers in by_beta.items()}
                for name, by_beta in methods.items()
            }
    except InputError as error:
        parser.error(str(error))
    against = options.against or next(iter(methods))
    if against not in methods:
        parser.error(f"--against {against}: no such method; there are {', '.join(methods)}")
    with waiting("resampling prompts and seeds"):
        tables = points_table(methods), equal_kl_table(methods, [float(x) for x in options.kl.split(",")], against)
    for table in tables:
        console.print(table)


if __name__ == "__main__":
    main()
