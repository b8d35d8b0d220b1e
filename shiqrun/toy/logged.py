"""Logged trajectories of several seeds: sampled from tables, cut into mini-batches, every seed by its own generator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shiqrun.toy.learner import Rows, rows_of
from shiqrun.toy.problems import Problem


@dataclass(frozen=True)
class Logged:
    """Trajectories of several seeds: the first half good, the second half bad, where there are two kinds.

    Attributes:
        state: `[tables, n, A]` int64.
        action: `[tables, n, A]` int64.
        mask: `[tables, n, A]` bool, True on actions.
        seeds: of the tables; they also order the mini-batches.
    """

    state: Tensor
    action: Tensor
    mask: Tensor
    seeds: Sequence[int]

    def __len__(self) -> int:
        return self.state.shape[1]

    def rewards(self, table: Tensor) -> Tensor:
        """The entries of a `[states, V]` table that the trajectories meet, `[tables, n, A]`, 0 in padding."""
        return table[self.state, self.action].masked_fill(~self.mask, 0)


def logged(problem: Problem, policies: Sequence[Tensor], number: int, seeds: Sequence[int]) -> Logged:
    """`number` trajectories of each policy for each seed; a policy is log-probabilities `[horizon, states, V]`."""
    drawn = [[_sampled(problem, policy, number, _rng(seed, k)) for k, policy in enumerate(policies)] for seed in seeds]
    parts = [[np.concatenate([kind[part] for kind in kinds]) for kinds in drawn] for part in range(3)]
    state, action, mask = (torch.from_numpy(np.stack(part)) for part in parts)
    return Logged(state, action, mask, seeds)


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _sampled(
    problem: Problem, logp: Tensor, number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(state, action, mask), each `[number, horizon]`."""
    cumulative = logp.exp().cumsum(-1).numpy()
    next_state, ends = problem.next_state.numpy(), problem.ends.numpy()
    state, alive = np.zeros(number, np.int64), np.ones(number, bool)
    columns = []
    for step in range(problem.horizon):
        chance = rng.random(number)[:, None]
        action = np.minimum((chance > cumulative[step][state]).sum(-1), cumulative.shape[-1] - 1)
        columns.append((state, action, alive))
        alive = alive & ~ends[state, action]
        state = np.where(alive, next_state[state, action], 0)
    state, action, mask = (np.stack(column, 1) for column in zip(*columns, strict=True))
    return state, action, mask


def minibatches(
    data: Logged, rewards: Tensor, *, kind: Literal["single", "pair", "group"], batch: int, epochs: int
) -> Iterator[Rows]:
    """Optimiser steps of `batch` trajectories a seed; every trajectory once an epoch, in a new order.

    A pair is a good trajectory and the bad one of the same number, and its two rows are neighbours. A group is all the
    trajectories of a step: they start in the same state, which is the prompt of these problems.

    Args:
        data: the trajectories.
        rewards: `[tables, n, A]`.
        kind: pairs and groups are compared, single trajectories are not.
        batch: trajectories a step and seed; even for pairs.
        epochs: passes over the data.
    """
    tables, size = len(data.seeds), 2 if kind == "pair" else 1
    entities = torch.arange(len(data)).view(size, -1).T  # trajectories of each pair, or each alone
    generators = [_rng(seed, 7) for seed in data.seeds]
    table = torch.arange(tables)[:, None]
    for _ in range(epochs):
        order = torch.from_numpy(np.stack([rng.permutation(len(entities)) for rng in generators]))
        for chosen in order.split(batch // size, dim=1):
            index = entities[chosen].flatten(1)  # [tables, trajectories]
            row_table = table.expand_as(index).flatten()
            group = torch.arange(index.numel()) // size if kind != "group" else row_table
            state, action, earned, mask = (
                x[table, index].flatten(0, 1) for x in (data.state, data.action, rewards, data.mask)
            )
            yield rows_of(row_table, state, action, earned, mask, group)
