"""Which trajectories of a batch are compared with each other: pairs, and the mean over a prompt's completions."""

from typing import Literal

import torch
from torch import Tensor

from shiqrun.losses.residual import masked, regularised_rewards
from shiqrun.types import ActionScores, Trajectories

Pairing = Literal["all", "best_worst"]


def returns(batch: Trajectories) -> Tensor:
    """R(x, y) = sum_t r_t, `[B]`, reward units."""
    return masked(batch.rewards, batch).sum(-1)


def regularised_returns(batch: Trajectories, policy: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """R(x, y) - beta sum_t D_t, `[B]`, reward units."""
    return regularised_rewards(batch, policy, reference, beta).sum(-1)


def pair_rows(batch: Trajectories, pairing: Pairing = "all") -> tuple[Tensor, Tensor]:
    """(first, second), rows `[P]` of every compared pair, the first with the return that is not smaller.

    "all" compares all completions of one prompt, "best_worst" the one with the largest return with the one with the
    smallest. A row without actions is in no pair.
    """
    level, there = returns(batch), batch.action_mask.any(-1)
    if pairing == "best_worst":
        same = (batch.group[:, None] == batch.group) & there[:, None] & there
        far = torch.finfo(level.dtype).max
        levels = level.expand_as(same)
        best = levels.masked_fill(~same, -far).argmax(-1)
        from_end = levels.masked_fill(~same, far).flip(-1).argmin(-1)  # the last of equals: a tie is a pair
        worst = len(level) - 1 - from_end
        row = torch.arange(len(level), device=level.device)
        chosen = there & (best == row) & (best != worst)
        return row[chosen], worst[chosen]
    one, other = _neighbours(batch.group, there.nonzero().squeeze(-1))
    swap = level[one] < level[other]
    return torch.where(swap, other, one), torch.where(swap, one, other)


def _neighbours(group: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of these rows that have one group, in memory of the order of rows and pairs."""
    rows = rows[group[rows].argsort(stable=True)]
    ones, others, distance = [rows[:0]], [rows[:0]], 1
    while (near := group[rows[distance:]] == group[rows[: len(rows) - distance]]).any():
        ones.append(rows[: len(rows) - distance][near])
        others.append(rows[distance:][near])
        distance += 1
    return torch.cat(ones), torch.cat(others)


def group_means(x: Tensor, batch: Trajectories) -> Tensor:
    """`[B]`, the mean of x over the rows that answer the same prompt and have actions."""
    there = batch.action_mask.any(-1)
    _, place = batch.group.unique(return_inverse=True)
    sums = x.new_zeros(len(x)).index_add(0, place, x.masked_fill(~there, 0))
    counts = x.new_zeros(len(x)).index_add(0, place, there.to(x.dtype))
    return (sums / counts.clamp(min=1))[place]
