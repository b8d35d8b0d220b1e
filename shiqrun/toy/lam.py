"""Regret of ShiQ(lambda) over lambda: 0 is ShiQ/ms, 1 is the paper's ShiQ; no paper has the values between.

Problems short and long, with dense and sparse rewards: squares with a treasure on a detour (dense: both pay; sparse:
the goal alone), and locks, rows of decisions that only one sequence opens (dense: every right one pays; sparse: the
last).
"""

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from shiqrun.console import track
from shiqrun.toy import methods
from shiqrun.toy.findings import Crosstab, Findings, Record, each_seed
from shiqrun.toy.grid import good_and_bad, passes
from shiqrun.toy.learner import Learner
from shiqrun.toy.plotting import band, legend
from shiqrun.toy.problems import Problem, grid, lock
from shiqrun.types import Positive, UnitInterval

Count = Annotated[int, Ge(1)]
STEP_REWARD = -0.1  # of a move in a grid, as in the `grid` study


def study(
    first_seed: int,
    *,
    seeds: Annotated[int, Ge(2)],
    lambdas: list[UnitInterval],
    grid_sizes: list[Annotated[int, Ge(2)]],
    lock_lengths: list[Count],
    horizon: Count,
    total_reward: Positive,
    beta: Positive,
    trajectories: Count,
    batch: Count,
    epochs: list[Count],
    learning_rate: Positive,
) -> Findings:
    """Regret after each of `epochs` for every lambda and problem.

    Args:
        first_seed: the first of the seeds.
        seeds: how many.
        lambdas: 0 to 1.
        grid_sizes: sides of the squares, cells.
        lock_lengths: decisions of the locks.
        horizon: moves in a square at most.
        total_reward: of treasure and goal, or of the opened lock, reward units.
        beta: KL temperature, reward units per nat.
        trajectories: of the optimal policy, and as many of the uniform one.
        batch: trajectories of an optimiser step.
        epochs: passes over the data after which is evaluated.
        learning_rate: of Adam.
    """
    all_seeds = range(first_seed, first_seed + seeds)
    records: list[Record] = []
    problems = _problems(grid_sizes, lock_lengths, horizon, total_reward)
    for name, problem in track(problems.items(), "lambda", total=len(problems)):
        data = good_and_bad(problem, beta, trajectories, all_seeds)
        for lam in lambdas:
            learner = Learner(methods.shiq(beta, lam), problem.reference, tables=seeds, learning_rate=learning_rate)
            for epoch in passes(learner, data, problem.reward, batch=batch, epochs=epochs):
                regret = problem.regret(learner.logp(), beta).tolist()
                records += each_seed(all_seeds, regret, "regret", problem=name, epochs=epoch, lam=lam)
    tables = [_table([r for r in records if r["epochs"] == epoch], epoch) for epoch in epochs]
    return Findings("lambda", records, tables, lambda figure: _draw(figure, records))


def _table(records: list[Record], epoch: int) -> Crosstab:
    named = [{**r, "lambda": f"λ = {r['lam']:g}"} for r in records]
    title = f"regret after {epoch} epoch{'s' * (epoch > 1)}, reward units"
    return Crosstab(title, "problem", "lambda", "regret", named)


def _problems(sizes: list[int], lengths: list[int], horizon: int, total_reward: float) -> dict[str, Problem]:
    """Name -> problem; a square's treasure has 4/7 of the reward where it pays, as in the `grid` study."""
    found: dict[str, Problem] = {}
    for density, share in (("dense", 4 / 7), ("sparse", 0.0)):
        for size in sizes:
            found[f"grid {size}x{size}, {density}"] = grid(
                size=size,
                horizon=horizon,
                step_reward=STEP_REWARD,
                goal_reward=total_reward * (1 - share),
                treasure_reward=total_reward * share,
            )
        for length in lengths:
            name = f"lock of {length}, {density}"
            found[name] = lock(length=length, actions=2, total_reward=total_reward, dense=density == "dense")
    return found


def _draw(figure: Any, records: list[Record]) -> None:
    names = list(dict.fromkeys(r["problem"] for r in records))
    epochs = list(dict.fromkeys(r["epochs"] for r in records))
    lambdas = list(dict.fromkeys(r["lam"] for r in records))
    columns = len(names) // 2
    figure.set_size_inches(2.8 * columns, 6)
    panels = figure.subplots(2, columns, sharex=True, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=True):
        for number, epoch in enumerate(epochs):
            mine = [r["regret"] for r in records if r["problem"] == name and r["epochs"] == epoch]
            label = f"{epoch} epoch{'s' * (epoch > 1)}"
            band(axes, range(len(lambdas)), np.array(mine).reshape(len(lambdas), -1).T, number, label)
        axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
    for axes in panels[-1]:
        axes.set_xticks(range(len(lambdas)), [f"{lam:g}" for lam in lambdas])
        axes.set_xlabel("λ")
    for axes in panels[:, 0]:
        axes.set_ylabel("regret, reward units")
    legend(figure, panels.flat[0], len(epochs))
