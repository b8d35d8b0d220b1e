"""This study measures how a constant added to all rewards changes the probability of actions without data.

Some arms of a bandit have data, the others none. The optimum pi* does not depend on the constant, but what a loss
learns from finite data may: under ShiQ an action without data keeps q = 0, whatever the other actions earn.
"""

from itertools import combinations
from typing import Annotated, Any

import torch
from annotated_types import Ge

from shiqrun.console import track
from shiqrun.errors import InputError
from shiqrun.toy import study_methods
from shiqrun.toy.findings import Crosstab, Findings, Record, seed_records
from shiqrun.toy.learner import Learner, StudyMethod, TableRows, table_rows
from shiqrun.toy.plotting import plot_band
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
    """Measure the probability of the arms with data after training, for every mean reward.

    Args:
        first_seed: the first seed.
        seeds: number of seeds; each draws the rewards of the arms with data.
        arms: number of arms, under a uniform reference.
        seen: number of arms with data.
        levels: mean rewards of the arms with data, reward units.
        spread: standard deviation of their rewards around the mean, reward units.
        v_ref: log-partition of the reference's logits, nats.
        beta: KL temperature, reward units per nat.
        steps: number of optimiser steps, each on every arm with data or on every pair of them.
        learning_rate: learning rate of Adam.

    Raises:
        InputError: `seen` is larger than `arms`.
    """
    if seen > arms:
        raise InputError(f"study.seen: met {seen}, expected at most study.arms={arms}")
    all_seeds = range(first_seed, first_seed + seeds)
    rewards = torch.stack([level + _rewards(seen, spread, seed) for level in levels for seed in all_seeds])
    reference = torch.zeros(1, arms, dtype=torch.float64).log_softmax(-1) + v_ref
    records: list[Record] = []
    for method in track([study_methods.shiq(beta), study_methods.copg(beta), study_methods.shiq_init(beta)], "offset"):
        learner = Learner(method, reference, tables=len(rewards), learning_rate=learning_rate)
        rows = _rows(method, rewards)
        for _ in range(steps):
            learner.update(rows)
        mass = learner.logp()[:, 0, :seen].exp().sum(-1).view(len(levels), seeds)
        for level, values in zip(levels, mass.tolist(), strict=True):
            records += seed_records(all_seeds, values, "seen", method=method.name, level=level)
    named = [{**r, "mean reward": f"{r['level']:+g}"} for r in records]
    title = f"probability of the {seen} arms of {arms} that have data, by mean reward"
    table = Crosstab(title, "method", "mean reward", "seen", named)
    return Findings("offset", records, [table], lambda figure: _draw(figure, records, seen / arms))


def _rewards(seen: int, spread: Positive, seed: int) -> torch.Tensor:
    """Return random rewards of the arms with data, `[seen]`, centred to mean 0."""
    rewards = spread * torch.randn(seen, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rewards - rewards.mean()


def _rows(method: StudyMethod, rewards: torch.Tensor) -> TableRows:
    """Return rows with every arm that has data, or every pair of these, once for each seed and mean reward."""
    seen, size = rewards.shape[1], 2 if method.rows == "pair" else 1
    action = torch.tensor(list(combinations(range(seen), size))).flatten().repeat(len(rewards))
    count = len(action) // len(rewards)
    table = torch.arange(len(rewards)).repeat_interleave(count)
    return table_rows(
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
        plot_band(axes, levels, values.numpy(), number, name)
    axes.axhline(uniform, color="grey", linewidth=1, linestyle=":", label="reference")
    axes.set_xlabel("mean reward of the arms with data, reward units")
    axes.set_ylabel("probability of the arms with data")
    axes.legend()
