"""What the level of the rewards does to actions that the data never show.

Some arms of a bandit have data, the others none. pi* does not change when a constant is added to all rewards, but the
solution from finite data may: an action without data keeps q = 0 under ShiQ, whatever the seen ones earn.
"""

from itertools import combinations
from typing import Annotated, Any

import torch
from annotated_types import Ge

from shiqrun.console import track
from shiqrun.errors import InputError
from shiqrun.toy import methods
from shiqrun.toy.findings import Crosstab, Findings, Record, each_seed
from shiqrun.toy.learner import Learner, Method, Rows, rows_of
from shiqrun.toy.plotting import band
from shiqrun.types import Positive

Count = Annotated[int, Ge(1)]


def study(
    first_seed: int,
    *,
    seeds: Annotated[int, Ge(2)],
    arms: Count,
    seen: Annotated[int, Ge(2)],
    levels: list[float],
    spread: Positive,
    v_ref: float,
    beta: Positive,
    steps: Count,
    learning_rate: Positive,
) -> Findings:
    """Probability of the arms with data after training, for every mean reward.

    Args:
        first_seed: the first of the seeds.
        seeds: how many; each draws the rewards of the seen arms.
        arms: in all, under a uniform reference.
        seen: arms with data.
        levels: mean rewards of the seen arms, reward units.
        spread: standard deviation of their rewards around the mean, reward units.
        v_ref: level of the reference's log-partition, nats.
        beta: KL temperature, reward units per nat.
        steps: optimiser steps, each on every seen arm or every pair of them.
        learning_rate: of Adam.

    Raises:
        InputError: more arms with data than arms.
    """
    if seen > arms:
        raise InputError(f"study.seen: met {seen}, expected at most study.arms={arms}")
    all_seeds = range(first_seed, first_seed + seeds)
    rewards = torch.stack([level + _rewards(seen, spread, seed) for level in levels for seed in all_seeds])
    reference = torch.zeros(1, arms, dtype=torch.float64).log_softmax(-1) + v_ref
    records: list[Record] = []
    for method in track([methods.shiq(beta), methods.copg(beta), methods.shiq_init(beta)], "offset"):
        learner = Learner(method, reference, tables=len(rewards), learning_rate=learning_rate)
        rows = _rows(method, rewards)
        for _ in range(steps):
            learner.update(rows)
        mass = learner.logp()[:, 0, :seen].exp().sum(-1).view(len(levels), seeds)
        for level, values in zip(levels, mass.tolist(), strict=True):
            records += each_seed(all_seeds, values, "seen", method=method.name, level=level)
    shown = [{**r, "mean reward": f"{r['level']:+g}"} for r in records]
    title = f"probability of the {seen} arms of {arms} that have data, by mean reward"
    table = Crosstab(title, "method", "mean reward", "seen", shown)
    return Findings("offset", records, [table], lambda figure: _draw(figure, records, seen / arms))


def _rewards(seen: int, spread: Positive, seed: int) -> torch.Tensor:
    """Of the seen arms, `[seen]`, their mean exactly 0."""
    drawn = spread * torch.randn(seen, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn - drawn.mean()


def _rows(method: Method, rewards: torch.Tensor) -> Rows:
    """Every seen arm once, or every pair of them once."""
    seen, size = rewards.shape[1], 2 if method.rows == "pair" else 1
    action = torch.tensor(list(combinations(range(seen), size))).flatten().repeat(len(rewards))
    count = len(action) // len(rewards)
    table = torch.arange(len(rewards)).repeat_interleave(count)
    return rows_of(
        table,
        torch.zeros(len(action), 1, dtype=torch.int64),
        action[:, None],
        rewards[table, action][:, None],
        torch.ones(len(action), 1, dtype=torch.bool),
        torch.arange(len(action)) // size,
    )


def _draw(figure: Any, records: list[Record], uniform: float) -> None:
    figure.set_size_inches(5.2, 3.8)
    axes = figure.subplots()
    levels = list(dict.fromkeys(r["level"] for r in records))
    for number, name in enumerate(dict.fromkeys(r["method"] for r in records)):
        values = torch.tensor([r["seen"] for r in records if r["method"] == name]).view(len(levels), -1).T
        band(axes, levels, values.numpy(), number, name)
    axes.axhline(uniform, color="grey", linewidth=1, linestyle=":", label="reference")
    axes.set_xlabel("mean reward of the arms with data, reward units")
    axes.set_ylabel("probability of the arms with data")
    axes.legend()
