"""Fig. 2 of the ShiQ paper (arXiv 2505.11081): a grid with a treasure, learnt from optimal and uniform trajectories.

State: (cell, treasure taken), as in the paper, so policies do not know the time left. The optimum that regret is
measured against does, and has the exact horizon; the best policy that does not know the time loses .002 of it.
DPO and CoPG compare the i-th optimal trajectory with the i-th uniform one, the other methods see both kinds shuffled;
a step has the same number of trajectories for all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from shiqrun.console import track
from shiqrun.toy import methods
from shiqrun.toy.findings import Crosstab, Findings, Record, each_seed
from shiqrun.toy.learner import Learner, Method
from shiqrun.toy.logged import Logged, logged, minibatches
from shiqrun.toy.plotting import COLOURS, legend
from shiqrun.toy.problems import Problem, grid
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
    """Regret and the probability of the treasure after each of `epochs`, with final and with fine-grained rewards.

    Args:
        first_seed: the first of the seeds.
        seeds: how many.
        size: side of the grid, cells.
        horizon: moves at most.
        step_reward: of every move, reward units.
        final_reward: of the goal, where it is the only one.
        treasure_reward: of the treasure in the fine-grained case.
        goal_reward: of the goal in the fine-grained case.
        beta: KL temperature, reward units per nat.
        trajectories: of the optimal policy, and as many of the uniform one.
        batch: trajectories of an optimiser step.
        epochs: passes over the data after which is evaluated.
        learning_rate: of Adam.
        value_ratio: DRO-V's learning rate of the value, relative to the policy's.
    """
    all_seeds = range(first_seed, first_seed + seeds)
    records: list[Record] = []
    for case, goal, treasure in (("final", final_reward, 0.0), ("fine-grained", goal_reward, treasure_reward)):
        problem = grid(size=size, horizon=horizon, step_reward=step_reward, goal_reward=goal, treasure_reward=treasure)
        data = good_and_bad(problem, beta, trajectories, all_seeds)
        for method in track(_methods(beta), f"grid, {case}"):
            learner = Learner(
                method, problem.reference, tables=seeds, learning_rate=learning_rate, value_ratio=value_ratio
            )
            seen = problem.reward if method.rewards == "full" else goal * problem.events["goal"]
            for epoch in passes(learner, data, seen, batch=batch, epochs=epochs):
                shared = {"case": case, "method": method.name, "epochs": epoch}
                records += _evaluated(problem, learner.logp(), beta, all_seeds, shared)
    return Findings("grid", records, _tables(records), lambda figure: _draw(figure, records))


def _evaluated(
    problem: Problem, logp: Tensor, beta: Positive, seeds: Sequence[int], shared: Record
) -> Iterator[Record]:
    regret = each_seed(seeds, problem.regret(logp, beta).tolist(), "regret", **shared)
    for record, chance in zip(regret, problem.expected(logp, problem.events["treasure"]).tolist(), strict=True):
        yield {**record, "treasure": chance}


def good_and_bad(problem: Problem, beta: Positive, number: int, seeds: Sequence[int]) -> Logged:
    """Trajectories of the regularised optimum, then as many of the uniform policy."""
    optimum = problem.optimum(beta)[1]
    return logged(problem, [optimum, torch.zeros_like(optimum).log_softmax(-1)], number, seeds)


def passes(learner: Learner, data: Logged, seen: Tensor, *, batch: int, epochs: Sequence[int]) -> Iterator[int]:
    """Trains to the last of `epochs` and yields each of them when it is reached."""
    per_epoch = -(-len(data) // batch)
    steps = minibatches(data, data.rewards(seen), kind=learner.method.rows, batch=batch, epochs=max(epochs))
    for step, rows in enumerate(steps, 1):
        learner.update(rows)
        if step % per_epoch == 0 and step // per_epoch in epochs:
            yield step // per_epoch


def _methods(beta: Positive) -> list[Method]:
    copg, dpo = methods.copg(beta), methods.dpo(beta)
    return [
        methods.shiq(beta),
        methods.shiq_ms(beta),
        methods.shiq_tk(beta),
        methods.shiq_init(beta),
        methods.direct(beta),
        methods.soft_q(beta),
        copg,
        replace(copg, name="CoPG, goal alone", rewards="goal"),
        dpo,
        replace(dpo, name="DPO, goal alone", rewards="goal"),
        methods.dro(beta),
        methods.dro_group_mean(beta),
        methods.dro_v(beta),
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
    legend(figure, row[0], len(epochs))
