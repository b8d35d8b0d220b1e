"""`Steps` yields the batches of optimiser steps; which rows meet in one depends on seed and step number alone.

Nothing here depends on earlier steps, so that a resumed run sees exactly the batches of an uninterrupted one.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from shiqrun.batching.rows import Rows
from shiqrun.batching.shares import Shares
from shiqrun.types import Trajectories

NumberedBatch = tuple[Trajectories, list[int]]
"""A micro-batch, and the numbers of its rows; none for an idle one."""


@lru_cache(maxsize=2)
def _epoch_order(units: int | Shares, seed: int, epoch: int) -> np.ndarray:
    """Return the shuffled unit numbers of an epoch."""
    visited = units.epoch_units(seed, epoch) if isinstance(units, Shares) else units
    order = np.random.default_rng([seed, epoch]).permutation(visited)
    order.setflags(write=False)
    return order


def step_units(units: int | Shares, per_step: int, seed: int, step: int) -> np.ndarray:
    """Return the numbers of the units that an optimiser step trains on, `[at most per_step]`.

    Each epoch visits every unit once, or of a mixture as often as the shares say; its last step may have fewer units
    than the others.

    Args:
        units: number of units in the split, or the shares of a mixture.
        per_step: units of a step.
        seed: of the order.
        step: from 0.
    """
    visits = sum(units.visits) if isinstance(units, Shares) else units
    epoch, index = divmod(step, -(-visits // per_step))
    return _epoch_order(units, seed, epoch)[index * per_step : (index + 1) * per_step]


class Steps(IterableDataset):
    """A `Steps` yields one rank's optimiser steps without end, each as a list of micro-batches.

    A rank without rows in a step (fewer rows than ranks) gets one row whose actions are masked: it adds nothing to
    the loss's sum or count, and takes part in the exchange of gradients.

    Args:
        rows: the training split.
        batch_size: trajectories of an optimiser step, over all ranks.
        micro_batch_tokens: tokens of one forward pass.
        seed: of the order of rows.
        start: the first step, from 0.
        rank: of this process.
        world: number of processes.
        even: give every rank as many micro-batches as the rank with most, without actions where it has no more rows:
            sharded weights are gathered by all ranks together.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        micro_batch_tokens: int,
        seed: int,
        start: int,
        rank: int,
        world: int,
        even: bool = False,
    ) -> None:
        self.rows, self.batch_size, self.tokens = rows, batch_size, micro_batch_tokens
        self.seed, self.start, self.rank, self.world, self.even = seed, start, rank, world, even

    def rows_of(self, step: int) -> list[list[int]]:
        """Return the row numbers of this rank's micro-batches of a step; empty where the rank has no row."""
        return self._cut(step, self.rank)

    def _cut(self, step: int, rank: int) -> list[list[int]]:
        rows = self.rows
        units = len(rows.units) if rows.shares is None else rows.shares
        picked = step_units(units, rows.units_per_step(self.batch_size), self.seed, step)
        return rows.micro_batches(rows.share([rows.units[i] for i in picked], rank, self.world), self.tokens)

    def batches_of(self, step: int) -> list[NumberedBatch]:
        """Return this rank's micro-batches of a step with the numbers of their rows."""
        return batches_of_rank(self.rows, partial(self._cut, step), self.rank, self.world * self.even)

    def __iter__(self) -> Iterator[list[Trajectories]]:
        step = self.start
        while True:
            yield [batch for batch, _ in self.batches_of(step)]
            step += 1


def batches_of_rank(rows: Rows, cut: Callable[[int], list[list[int]]], rank: int, even: int = 0) -> list[NumberedBatch]:
    """Return a rank's micro-batches with their row numbers: at least one, with idle ones where it has too few.

    Args:
        rows: which the numbers are of.
        cut: returns the row numbers of a rank's micro-batches; all ranks find the same.
        rank: of this process.
        even: ranks that read equally many micro-batches; 0 where each may read another number.
    """
    mine = cut(rank)
    count = max([1, *(len(cut(other)) for other in range(even))])
    idle = [(_idle_batch(rows), list[int]()) for _ in range(count - len(mine))]
    return [(rows.collate(batch), batch) for batch in mine] + idle


class Batches(IterableDataset):
    """A `Batches` yields the batches of one rank's share of a split, each row once.

    Iteration yields pairs (row numbers, batch).

    Args:
        rows: the split.
        tokens: of one forward pass.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, rows: Rows, *, tokens: int, rank: int = 0, world: int = 1) -> None:
        self.rows = rows
        self.cut = rows.micro_batches(rows.share(rows.units, rank, world), tokens)

    def __iter__(self) -> Iterator[Any]:
        if len(self.rows) and not self.cut:
            yield [], _idle_batch(self.rows)  # more ranks than rows
        for picked in self.cut:
            yield picked, self.rows.collate(picked)

    def __len__(self) -> int:
        return len(self.cut)


def _idle_batch(rows: Rows) -> Trajectories:
    """Return a batch without actions, for a rank that has no row but must take part in the exchange of gradients."""
    return _without_actions(rows.collate([int(rows.lengths.argmin())]))


def _without_actions(batch: Trajectories) -> Trajectories:
    """Return a batch, and the mismatched one in it, whose actions are masked."""
    none, joined = torch.zeros_like(batch.action_mask), batch.mismatched
    joined = None if joined is None else _without_actions(joined)
    return replace(batch, action_mask=none, rewards=torch.zeros_like(batch.rewards), mismatched=joined)
