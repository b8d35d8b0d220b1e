"""This study reproduces Fig. 2 of the ShiQ paper (arXiv 2505.11081): regret of each loss on a grid with a treasure.

The data are trajectories of the optimal and of the uniform policy. A state is (cell, treasure taken), as in the paper,
so policies do not know the time left. The optimum of which regret is measured knows it; the best policy that does not
loses .002. DPO and CoPG compare the i-th optimal trajectory with the i-th uniform one; the other methods see both kinds
shuffled. A step has the same number of trajectories for all methods.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from shiqrun.console import track
from shiqrun.toy import study_methods
from shiqrun.toy.findings import Crosstab, Findings, Record, seed_records
from shiqrun.toy.learner import Learner, StudyMethod
from shiqrun.toy.logged_trajectories import LoggedTrajectories, minibatches, sample_trajectories
from shiqrun.toy.plotting import COLOURS, shared_legend
from shiqrun.toy.tabular_problems import TabularProblem, grid
from shiqrun.types import Positive

Count = Annotated[int, Ge(1)]


def study(
    first_seed: int,
    *,
    seeds: Annotated[int, Ge(2)],
    size: Annotated[int, Ge(2)],
    horizon: Count,
    step_reward: float,
    final_reward: float,
    treasure_reward: float,
    goal_reward: float,
    beta: Positive,
    trajectories: Count,
    batch: Annotated[int, Ge(2)],
    epochs: list[Count],
    learning_rate: Positive,
    value_ratio: Positive,
) -> Findings:
    """Measure regret and the probability of taking the treasure after each of `epochs`, with two kinds of rewards.

    Args:
        first_seed: the first seed.
        seeds: number of seeds.
        size: side of the grid in cells.
        horizon: largest number of moves.
        step_reward: reward of every move.
        final_reward: reward of the goal where only the goal is rewarded.
        treasure_reward: reward of the treasure in the fine-grained case.
        goal_reward: reward of the goal in the fine-grained case.
        beta: KL temperature, reward units per nat.
        trajectories: number of trajectories of the optimal policy, and of the uniform policy.
        batch: trajectories in an optimiser step.
        epochs: numbers of passes over the data after which the policies are evaluated.
        learning_rate: learning rate of Adam.
        value_ratio: DRO-V's learning rate of the value, relative to that of the policy.
    """
    all_seeds = range(first_seed, first_seed + seeds)
    records: list[Record] = []
    for case, goal, treasure in (("final", final_reward, 0.0), ("fine-grained", goal_reward, treasure_reward)):
        problem = grid(size=size, horizon=horizon, step_reward=step_reward, goal_reward=goal, treasure_reward=treasure)
        data = sample_good_and_bad(problem, beta, trajectories, all_seeds)
        for method in track(_methods(beta), f"grid, {case}"):
            learner = Learner(
                method, problem.reference, tables=seeds, learning_rate=learning_rate, value_ratio=value_ratio
            )
            seen = problem.reward if method.rewards == "full" else goal * problem.events["goal"]
            for epoch in train_epochs(learner, data, seen, batch=batch, epochs=epochs):
                shared = {"case": case, "method": method.name, "epochs": epoch}
                records += _evaluate(problem, learner.logp(), beta, all_seeds, shared)
    return Findings("grid", records, _tables(records), lambda figure: _draw(figure, records))


def _evaluate(
    problem: TabularProblem, logp: Tensor, beta: Positive, seeds: Sequence[int], shared: Record
) -> Iterator[Record]:
    regret = seed_records(seeds, problem.regret(logp, beta).tolist(), "regret", **shared)
    for record, chance in zip(regret, problem.expectation(logp, problem.events["treasure"]).tolist(), strict=True):
        yield {**record, "treasure": chance}


def sample_good_and_bad(
    problem: TabularProblem, beta: Positive, number: int, seeds: Sequence[int]
) -> LoggedTrajectories:
    """Sample trajectories of the KL-regularised optimum, then as many of the uniform policy."""
    optimum = problem.optimum(beta)[1]
    return sample_trajectories(problem, [optimum, torch.zeros_like(optimum).log_softmax(-1)], number, seeds)


def train_epochs(
    learner: Learner, data: LoggedTrajectories, seen: Tensor, *, batch: int, epochs: Sequence[int]
) -> Iterator[int]:
    """Train the learner for the largest number in `epochs`, and yield each of them when it is reached."""
    per_epoch = -(-len(data) // batch)
    steps = minibatches(data, data.rewards(seen), kind=learner.method.rows, batch=batch, epochs=max(epochs))
    for step, rows in enumerate(steps, 1):
        learner.update(rows)
        if step % per_epoch == 0 and step // per_epoch in epochs:
            yield step // per_epoch


def _methods(beta: Positive) -> list[StudyMethod]:
    copg, dpo = study_methods.copg(beta), study_methods.dpo(beta)
    return [
        study_methods.shiq(beta),
        study_methods.shiq_ms(beta),
        study_methods.shiq_tk(beta),
        study_methods.shiq_init(beta),
        study_methods.direct(beta),
        study_methods.soft_q(beta),
        copg,
        replace(copg, name="CoPG, goal alone", rewards="goal"),
        dpo,
        replace(dpo, name="DPO, goal alone", rewards="goal"),
        study_methods.dro(beta),
        study_methods.dro_group_mean(beta),
        study_methods.dro_v(beta),
    ]


def _tables(records: Sequence[Record]) -> list[Crosstab]:
    named = [{**r, "data": f"{r['case']}, {r['epochs']} ep."} for r in records]
    treasure = [r for r in named if r["case"] == "fine-grained"]
    return [
        Crosstab("regret, reward units", "method", "data", "regret", named),
        Crosstab("probability that the treasure is taken", "method", "data", "treasure", treasure),
    ]


def _draw(figure: Any, records: Sequence[Record]) -> None:
    figure.set_size_inches(12, 4.6)
    epochs = list(dict.fromkeys(r["epochs"] for r in records))
    panels = [("regret", "final"), ("regret", "fine-grained"), ("treasure", "fine-grained")]
    row = figure.subplots(1, 3, sharey=True)
    for axes, (value, case) in zip(row, panels, strict=True):
        for number, epoch in enumerate(epochs):
            mine = [r for r in records if r["case"] == case and r["epochs"] == epoch]
            cells = Crosstab("", "method", "epochs", value, mine).cells()
            places = [k + 0.36 * (number - (len(epochs) - 1) / 2) for k in range(len(cells))]
            means, halves = zip(*cells.values(), strict=True)
            label = f"{epoch} epoch{'s' * (epoch > 1)}"
            axes.errorbar(means, places, xerr=halves, fmt="o", ms=4, color=COLOURS[number], label=label)
        axes.set_yticks(range(len(cells)), [str(name) for name, _ in cells])
        axes.set_xlabel("regret, reward units" if value == "regret" else "probability of the treasure")
        axes.set_title(f"{case} reward", fontsize=9)
        if value == "regret":
            axes.set_xscale("log")
    row[0].invert_yaxis()
    shared_legend(figure, row[0], len(epochs))
