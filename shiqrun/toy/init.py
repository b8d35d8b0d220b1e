"""Fig. 6 of the ShiQ paper (arXiv 2505.11081): the loss before the first step against the level of the reference's v.

The grid of the `grid` study with fine-grained rewards. The reference is the same policy at every level: only a constant
is added to all its logits, as language models have large ones.
"""

from dataclasses import replace
from itertools import product
from typing import Annotated, Any

import torch
from annotated_types import Ge

from shiqrun.console import track
from shiqrun.toy import methods
from shiqrun.toy.findings import Crosstab, Findings, Record
from shiqrun.toy.grid import good_and_bad, passes
from shiqrun.toy.learner import Learner
from shiqrun.toy.logged import Logged, minibatches
from shiqrun.toy.plotting import COLOURS
from shiqrun.toy.problems import Problem, at_level, grid
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
    """Loss at step 0 and regret after training, for ShiQ and ShiQ/init at every level of v_ref.

    Args:
        first_seed: the first of the seeds.
        seeds: how many.
        levels: of v_ref, nats.
        size: side of the grid, cells.
        horizon: moves at most.
        step_reward: of every move, reward units.
        treasure_reward: of the treasure.
        goal_reward: of the goal.
        beta: KL temperature, reward units per nat.
        trajectories: of the optimal policy, and as many of the uniform one.
        batch: trajectories of an optimiser step.
        epochs: passes over the data after which regret is taken.
        learning_rate: of Adam.
    """
    problem = grid(
        size=size, horizon=horizon, step_reward=step_reward, goal_reward=goal_reward, treasure_reward=treasure_reward
    )
    all_seeds = range(first_seed, first_seed + seeds)
    data = good_and_bad(problem, beta, trajectories, all_seeds)
    records: list[Record] = []
    for method, level in track(list(product((methods.shiq(beta), methods.shiq_init(beta)), levels)), "init"):
        shifted = at_level(problem, level)
        learner = Learner(method, shifted.reference, tables=seeds, learning_rate=learning_rate)
        losses = first_losses(learner, data, shifted)
        for _ in passes(learner, data, shifted.reward, batch=batch, epochs=[epochs]):
            regret = shifted.regret(learner.logp(), beta).tolist()
        for seed, loss, final in zip(all_seeds, losses, regret, strict=True):
            records.append({"method": method.name, "v_ref": level, "seed": seed, "loss": loss, "regret": final})
    return Findings("init", records, _tables(records, epochs), lambda figure: _draw(figure, records, epochs))


def _tables(records: list[Record], epochs: int) -> list[Crosstab]:
    return [
        Crosstab("loss at step 0, reward units squared", "v_ref", "method", "loss", records),
        Crosstab(f"regret after {epochs} epochs, reward units", "v_ref", "method", "regret", records),
    ]


def first_losses(learner: Learner, data: Logged, problem: Problem) -> list[float]:
    """Each seed's mean loss over all its data before any step."""
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
