"""This study measures the regret of ShiQ(lambda) against lambda: 0 is ShiQ/ms, 1 is ShiQ; no paper has values between.

The problems are short and long, with dense and sparse rewards. In grids a treasure lies on a detour: dense rewards pay
for treasure and goal, sparse ones for the goal alone. In locks one sequence of decisions is right: dense rewards
pay for every right decision, sparse ones for the last.
"""

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from shiqrun.console import track
from shiqrun.toy import study_methods
from shiqrun.toy.findings import Crosstab, Findings, Record, seed_records
from shiqrun.toy.grid_study import sample_good_and_bad, train_epochs
from shiqrun.toy.learner import Learner
from shiqrun.toy.plotting import plot_band, shared_legend
from shiqrun.toy.tabular_problems import TabularProblem, grid, lock
from shiqrun.types import Positive, UnitInterval

Count = Annotated[int, Ge(1)]
STEP_REWARD = -0.1  # of a move in a grid, as in `grid_study`; reward units


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
    """Measure the regret after each of `epochs` for every lambda and problem.

    Args:
        first_seed: the first seed.
        seeds: number of seeds.
        lambdas: values of lambda, 0 to 1.
        grid_sizes: sides of the grids in cells.
        lock_lengths: numbers of decisions of the locks.
        horizon: largest number of moves in a grid.
        total_reward: reward of treasure and goal together, and of an opened lock.
        beta: KL temperature, reward units per nat.
        trajectories: number of trajectories of the optimal policy, and of the uniform policy.
        batch: trajectories in an optimiser step.
        epochs: numbers of passes over the data after which the policies are evaluated.
        learning_rate: learning rate of Adam.
    """
    all_seeds = range(first_seed, first_seed + seeds)
    records: list[Record] = []
    problems = _problems(grid_sizes, lock_lengths, horizon, total_reward)
    for name, problem in track(problems.items(), "lambda", total=len(problems)):
        data = sample_good_and_bad(problem, beta, trajectories, all_seeds)
        for lam in lambdas:
            learner = Learner(
                study_methods.shiq(beta, lam), problem.reference, tables=seeds, learning_rate=learning_rate
            )
            for epoch in train_epochs(learner, data, problem.reward, batch=batch, epochs=epochs):
                regret = problem.regret(learner.logp(), beta).tolist()
                records += seed_records(all_seeds, regret, "regret", problem=name, epochs=epoch, lam=lam)
    tables = [_table([r for r in records if r["epochs"] == epoch], epoch) for epoch in epochs]
    return Findings("lambda", records, tables, lambda figure: _draw(figure, records))


def _table(records: list[Record], epoch: int) -> Crosstab:
    named = [{**r, "lambda": f"λ = {r['lam']:g}"} for r in records]
    title = f"regret after {epoch} epoch{'s' * (epoch > 1)}, reward units"
    return Crosstab(title, "problem", "lambda", "regret", named)


def _problems(sizes: list[int], lengths: list[int], horizon: int, total_reward: float) -> dict[str, TabularProblem]:
    """Return the problems by name; where the treasure of a grid pays, it has 4/7 of the reward, as in `grid_study`."""
    found: dict[str, TabularProblem] = {}
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
            plot_band(axes, range(len(lambdas)), np.array(mine).reshape(len(lambdas), -1).T, number, label)
        axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
    for axes in panels[-1]:
        axes.set_xticks(range(len(lambdas)), [f"{lam:g}" for lam in lambdas])
        axes.set_xlabel("λ")
    for axes in panels[:, 0]:
        axes.set_ylabel("regret, reward units")
    shared_legend(figure, panels.flat[0], len(epochs))
