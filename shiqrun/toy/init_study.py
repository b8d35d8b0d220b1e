"""This study reproduces Fig. 6 of the ShiQ paper (arXiv 2505.11081): the loss before training against v_ref.

v_ref is the log-partition of the reference's logits, in nats. The problem is the grid of `grid_study` with fine-grained
rewards. The reference is the same policy at every level: a constant is added to all its logits, because the logits of
language models have a large level too.
"""

from dataclasses import replace
from itertools import product
from typing import Annotated, Any

import torch
from annotated_types import Ge

from shiqrun.console import track
from shiqrun.toy import study_methods
from shiqrun.toy.findings import Crosstab, Findings, Record
from shiqrun.toy.grid_study import sample_good_and_bad, train_epochs
from shiqrun.toy.learner import Learner
from shiqrun.toy.logged_trajectories import LoggedTrajectories, minibatches
from shiqrun.toy.plotting import COLOURS
from shiqrun.toy.tabular_problems import TabularProblem, grid, with_log_partition
from shiqrun.types import Positive

Count = Annotated[int, Ge(1)]


def study(
    first_seed: int,
    *,
    seeds: Annotated[int, Ge(2)],
    levels: list[float],
    size: Annotated[int, Ge(2)],
    horizon: Count,
    step_reward: float,
    treasure_reward: float,
    goal_reward: float,
    beta: Positive,
    trajectories: Count,
    batch: Count,
    epochs: Count,
    learning_rate: Positive,
) -> Findings:
    """Measure the loss at step 0 and the regret after training of ShiQ and ShiQ/init at every level of v_ref.

    Args:
        first_seed: the first seed.
        seeds: number of seeds.
        levels: levels of v_ref, nats.
        size: side of the grid in cells.
        horizon: largest number of moves.
        step_reward: reward of every move.
        treasure_reward: reward of the treasure.
        goal_reward: reward of the goal.
        beta: KL temperature, reward units per nat.
        trajectories: number of trajectories of the optimal policy, and of the uniform policy.
        batch: trajectories in an optimiser step.
        epochs: passes over the data before regret is measured.
        learning_rate: learning rate of Adam.
    """
    problem = grid(
        size=size, horizon=horizon, step_reward=step_reward, goal_reward=goal_reward, treasure_reward=treasure_reward
    )
    all_seeds = range(first_seed, first_seed + seeds)
    data = sample_good_and_bad(problem, beta, trajectories, all_seeds)
    records: list[Record] = []
    for method, level in track(
        list(product((study_methods.shiq(beta), study_methods.shiq_init(beta)), levels)), "init"
    ):
        shifted = with_log_partition(problem, level)
        learner = Learner(method, shifted.reference, tables=seeds, learning_rate=learning_rate)
        losses = mean_losses(learner, data, shifted)
        for _ in train_epochs(learner, data, shifted.reward, batch=batch, epochs=[epochs]):
            regret = shifted.regret(learner.logp(), beta).tolist()
        for seed, loss, final in zip(all_seeds, losses, regret, strict=True):
            records.append({"method": method.name, "v_ref": level, "seed": seed, "loss": loss, "regret": final})
    return Findings("init", records, _tables(records, epochs), lambda figure: _draw(figure, records, epochs))


def _tables(records: list[Record], epochs: int) -> list[Crosstab]:
    return [
        Crosstab("loss at step 0, reward units squared", "v_ref", "method", "loss", records),
        Crosstab(f"regret after {epochs} epochs, reward units", "v_ref", "method", "regret", records),
    ]


def mean_losses(learner: Learner, data: LoggedTrajectories, problem: TabularProblem) -> list[float]:
    """Return each seed's mean loss over all its data, without an update."""
    rewards = data.rewards(problem.reward)
    rows = next(minibatches(data, rewards, kind="single", batch=len(data), epochs=1))
    found = []
    for table in range(len(data.seeds)):
        mine = replace(rows.batch, action_mask=rows.batch.action_mask & (rows.table == table)[:, None])
        with torch.no_grad():
            terms = learner.terms(replace(rows, batch=mine), rows.times)
        found.append((terms.total / terms.count).item())
    return found


def _draw(figure: Any, records: list[Record], epochs: int) -> None:
    figure.set_size_inches(8.5, 3.6)
    labels = {"loss": "loss at step 0, reward units squared", "regret": f"regret after {epochs} epochs, reward units"}
    for axes, (value, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for number, name in enumerate(dict.fromkeys(r["method"] for r in records)):
            cells = Crosstab("", "v_ref", "method", value, [r for r in records if r["method"] == name]).cells()
            means, halves = zip(*cells.values(), strict=True)
            axes.errorbar(
                [level for level, _ in cells], means, yerr=halves, marker="o", ms=4, color=COLOURS[number], label=name
            )
        axes.set_yscale("log")
        axes.set_xticks([level for level, _ in cells])
        axes.set_xlabel("level of v_ref, nats")
        axes.set_ylabel(label)
        axes.legend()
