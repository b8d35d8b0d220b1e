"""This module compares completions of one prompt: their returns, the pairs they form, and their group means."""

from typing import Literal

import torch
from torch import Tensor

from shiqrun.losses.residual import regularised_rewards, zero_padding
from shiqrun.types import ActionScores, Trajectories

Pairing = Literal["all", "best_worst"]
"""Which completions of one prompt are compared: all pairs, or the one with the largest return with the smallest."""
ROUNDING = 1e-6
"""Returns that differ by a smaller share of the rewards' sizes differ by rounding alone."""


def returns(batch: Trajectories) -> Tensor:
    """Return the return of every trajectory, R = sum_t r_t, `[B]`, reward units."""
    return zero_padding(batch.rewards, batch).sum(-1)


def regularised_returns(batch: Trajectories, policy: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """Return the KL-regularised return of every trajectory, U = R - beta sum_t D_t, `[B]`, reward units."""
    return regularised_rewards(batch, policy, reference, beta).sum(-1)


def pair_rows(batch: Trajectories, pairing: Pairing = "all") -> tuple[Tensor, Tensor]:
    """Return the pairs of rows that are compared, as two index tensors `[P]` int64.

    The first row of a pair has the return that is not smaller. A row without actions is in no pair.

    Args:
        batch: trajectories with rewards; rows with equal `group` answer the same prompt.
        pairing: "all" pairs of a prompt's completions, or "best_worst", one pair a prompt.
    """
    level, acts = returns(batch), batch.action_mask.any(-1)
    if pairing == "best_worst":
        same = (batch.group[:, None] == batch.group) & acts[:, None] & acts
        far = torch.finfo(level.dtype).max
        levels = level.expand_as(same)
        best = levels.masked_fill(~same, -far).argmax(-1)
        from_end = levels.masked_fill(~same, far).flip(-1).argmin(-1)  # the last of equals: a tie is a pair
        worst = len(level) - 1 - from_end
        row = torch.arange(len(level), device=level.device)
        chosen = acts & (best == row) & (best != worst)
        return row[chosen], worst[chosen]
    one, other = _pairs_of_groups(batch.group, acts.nonzero().squeeze(-1))
    swap = level[one] < level[other]
    return torch.where(swap, other, one), torch.where(swap, one, other)


def _pairs_of_groups(group: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return all pairs of these rows that share a group, using memory for the pairs found and not for all pairs."""
    rows = rows[group[rows].argsort(stable=True)]
    ones, others, distance = [rows[:0]], [rows[:0]], 1
    while (near := group[rows[distance:]] == group[rows[: len(rows) - distance]]).any():
        ones.append(rows[: len(rows) - distance][near])
        others.append(rows[distance:][near])
        distance += 1
    return torch.cat(ones), torch.cat(others)


def decided_pairs(batch: Trajectories, pairing: Pairing = "all") -> tuple[Tensor, Tensor, Tensor]:
    """Return winner and loser rows `[P]` int64 of pairs with different returns, and the number of ties, `[]` int64.

    Returns that differ by rounding alone are a tie: equal rewards summed in another order give another float.
    """
    first, second = pair_rows(batch, pairing)
    level, size = returns(batch), zero_padding(batch.rewards, batch).abs().sum(-1)
    rounding = ROUNDING * (size[first] + size[second])
    decided = level[first] - level[second] > rounding
    return first[decided], second[decided], (~decided).sum()


def pair_count(batch: Trajectories, pairing: Pairing = "all") -> Tensor:
    """Return the number of compared pairs, ties included, `[]` int64."""
    return torch.full_like(pair_rows(batch, pairing)[0], 1).sum()


def decided_pair_count(batch: Trajectories, pairing: Pairing = "all") -> Tensor:
    """Return the number of pairs with different returns, `[]` int64."""
    return torch.full_like(decided_pairs(batch, pairing)[0], 1).sum()


def group_means(x: Tensor, batch: Trajectories) -> Tensor:
    """Return, for every row, the mean of x `[B]` over the rows of its group that have actions; `[B]`, unit of x."""
    acts = batch.action_mask.any(-1)
    return _group_sums(x.masked_fill(~acts, 0), batch) / group_sizes(batch).to(x.dtype).clamp(min=1)


def group_soft_means(x: Tensor, batch: Trajectories, temperature: float) -> Tensor:
    """Return T log mean exp(x / T) of x `[B]` over the rows of each row's group that have actions; `[B]`, unit of x.

    It is 0 for a row without actions.
    """
    acts = batch.action_mask.any(-1)
    _, place = torch.unique(batch.group, return_inverse=True)
    lowest = torch.full_like(x, torch.finfo(x.dtype).min)
    top = lowest.scatter_reduce(0, place, x.where(acts, lowest), "amax")[place]
    powers = ((x - top) / temperature).exp()
    return (top + temperature * group_means(powers, batch).log()).masked_fill(~acts, 0)


def group_sizes(batch: Trajectories) -> Tensor:
    """Return, for every row, the number of rows of its group that have actions; `[B]` int64."""
    return _group_sums(batch.action_mask.any(-1).long(), batch)


def _group_sums(x: Tensor, batch: Trajectories) -> Tensor:
    """Return, for every row, the sum of x `[B]` over the rows of its group; `[B]`, unit of x."""
    _, place = torch.unique(batch.group, return_inverse=True)
    return x.new_zeros(len(x)).index_add(0, place, x)[place]
