"""Rows, optimiser steps and micro-batches: which trajectories meet, as a pure function of seed and step.

Nothing here remembers anything, so a resumed run sees exactly the batches that the killed one would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

from shiqrun.data.encode import EncodedTrajectory
from shiqrun.types import ActionScores, Trajectories

Scores = Sequence[tuple[np.ndarray, ...]]
"""(logit, log_partition) of every action of every row, and with an anchor `[A, K]` further logits; float32."""


class Rows:
    """The trajectories of a split, numbered by row, with what is known of them beside the tokens.

    Args:
        trajectories: what `encode` made.
        pad: token id that fills rows; masks say where, never the id.
        together: rows of one prompt are compared with each other and never separated by a step, micro-batch or rank.
    """

    def __init__(self, trajectories: Sequence[EncodedTrajectory], pad: int, *, together: bool = False) -> None:
        self.trajectories = trajectories
        self.pad = pad
        self.together = together
        self.lengths = np.array([len(t.input_ids) for t in trajectories], np.int64)
        self.actions = np.array([len(t.action_index) for t in trajectories], np.int64)
        numbers: dict[str, int] = {}
        self.group = np.array([numbers.setdefault(t.group, len(numbers)) for t in trajectories], np.int64)
        self.prompts = len({t.prompt_id for t in trajectories})
        self.units = self._units()
        self.offset = np.zeros(len(trajectories), np.float32)
        self.reference: Scores | None = None
        self.anchor: tuple[int, int, int] | None = None  # tokens a state, vocabulary, seed

    def __len__(self) -> int:
        return len(self.trajectories)

    def _units(self) -> list[list[int]]:
        """Rows that stay together: single rows, or all rows of a prompt."""
        if not self.together:
            return [[i] for i in range(len(self))]
        order = np.argsort(self.group, kind="stable")
        return [part.tolist() for part in np.split(order, np.flatnonzero(np.diff(self.group[order])) + 1) if len(part)]

    def units_per_step(self, batch_size: int) -> int:
        """Units of an optimiser step: as many as hold about `batch_size` rows, at least one."""
        return max(1, round(batch_size * len(self.units) / max(len(self), 1)))

    def steps_per_epoch(self, batch_size: int) -> int:
        """Optimiser steps of one pass over all rows."""
        return -(-len(self.units) // self.units_per_step(batch_size))

    @property
    def returns(self) -> np.ndarray:
        """`[rows]`, sum of each trajectory's rewards, NaN where the data has none; without the offset."""
        return np.array([np.nan if t.rewards is None else t.rewards.sum() for t in self.trajectories], np.float32)

    def collate(self, rows: Sequence[int]) -> Trajectories:
        """The rows as one padded batch; each row's offset is taken from the reward of its last action."""
        picked = [self.trajectories[i] for i in rows]
        ids = pad_sequence([torch.from_numpy(t.input_ids).long() for t in picked], True, self.pad)
        index = pad_sequence([torch.from_numpy(t.action_index).long() for t in picked], True, 1)
        lengths, actions = torch.from_numpy(self.lengths[rows]), torch.from_numpy(self.actions[rows])
        rewards = torch.full(index.shape, float("nan"))
        for i, (row, t) in enumerate(zip(rows, picked, strict=True)):
            if t.rewards is not None:
                rewards[i, : len(t.rewards)] = torch.from_numpy(t.rewards)
                rewards[i, len(t.rewards) - 1] -= float(self.offset[row])
        mask = torch.arange(index.shape[1]) < actions[:, None]
        return Trajectories(
            input_ids=ids,
            attention_mask=torch.arange(ids.shape[1]) < lengths[:, None],
            action_index=index,
            action_mask=mask,
            rewards=rewards.masked_fill(~mask, 0),
            group=torch.from_numpy(self.group[rows]),
            reference=self._reference(rows),
            offset=torch.from_numpy(self.offset[rows]),
            anchor_tokens=self._anchor(rows),
        )

    def _anchor(self, rows: Sequence[int]) -> torch.Tensor | None:
        """Uniform tokens at every action's state, a function of seed and row."""
        if self.anchor is None:
            return None
        k, vocabulary, seed = self.anchor
        drawn = [np.random.default_rng([seed, int(i)]).integers(vocabulary, size=(self.actions[i], k)) for i in rows]
        return pad_sequence([torch.from_numpy(x) for x in drawn], True)

    def _reference(self, rows: Sequence[int]) -> ActionScores | None:
        if self.reference is None:
            return None
        kept = [self.reference[i] for i in rows]
        logit, partition, *further = (
            pad_sequence([torch.from_numpy(x) for x in part], True) for part in zip(*kept, strict=True)
        )
        return ActionScores(logit, partition, further=further[0] if further else None)


Units = Sequence[Sequence[int]]
"""Lists of rows; the rows of one list stay together."""


def _tokens(lengths: np.ndarray, unit: Sequence[int]) -> int:
    return int(lengths[unit].max())


def micro_batches(lengths: np.ndarray, units: Units, tokens: int) -> list[list[int]]:
    """The rows of the units in batches of at most `tokens` padded tokens, longest first; a larger unit stands alone."""
    cut: list[list[int]] = []
    for unit in sorted(units, key=lambda u: -_tokens(lengths, u)):
        if cut and lengths[cut[-1]].max() * (len(cut[-1]) + len(unit)) <= tokens:
            cut[-1].extend(unit)
        else:
            cut.append(list(unit))
    return cut


def share(units: Units, lengths: np.ndarray, rank: int, world: int) -> Units:
    """Rank's units: sorted by padded size and dealt in turn, so that ranks have about equal work."""
    return sorted(units, key=lambda u: -_tokens(lengths, u) * len(u))[rank::world]


def step_units(units: int, per_step: int, seed: int, step: int) -> np.ndarray:
    """Units of optimiser step `step` (from 0): epochs without replacement, the last step of an epoch may be short."""
    epoch, index = divmod(step, -(-units // per_step))
    order = np.random.default_rng([seed, epoch]).permutation(units)
    return order[index * per_step : (index + 1) * per_step]


class Steps(IterableDataset):
    """One rank's micro-batches of each optimiser step from `start` on, without end.

    A rank without rows in a step (fewer rows than ranks) gets one row whose actions are masked: it adds nothing to
    the sum or the count, and takes part in the gradient's exchange.
    """

    def __init__(
        self, rows: Rows, *, batch_size: int, micro_batch_tokens: int, seed: int, start: int, rank: int, world: int
    ) -> None:
        self.rows, self.batch_size, self.tokens = rows, batch_size, micro_batch_tokens
        self.seed, self.start, self.rank, self.world = seed, start, rank, world

    def rows_of(self, step: int) -> list[list[int]]:
        """This rank's micro-batches of a step, in row numbers; empty where it has no row."""
        rows = self.rows
        picked = step_units(len(rows.units), rows.units_per_step(self.batch_size), self.seed, step)
        mine = share([rows.units[i] for i in picked], rows.lengths, self.rank, self.world)
        return micro_batches(rows.lengths, mine, self.tokens)

    def __iter__(self) -> Iterator[list[Trajectories]]:
        step = self.start
        while True:
            yield [self.rows.collate(b) for b in self.rows_of(step)] or [_idle(self.rows)]
            step += 1


def _idle(rows: Rows) -> Trajectories:
    batch = rows.collate([0])
    return replace(batch, action_mask=torch.zeros_like(batch.action_mask), rewards=torch.zeros_like(batch.rewards))


class Batches(IterableDataset):
    """One rank's share of a whole split, once, in batches of at most `tokens` padded tokens."""

    def __init__(self, rows: Rows, *, tokens: int, rank: int = 0, world: int = 1) -> None:
        self.rows = rows
        self.cut = micro_batches(rows.lengths, share(rows.units, rows.lengths, rank, world), tokens)

    def __iter__(self) -> Iterator[Any]:
        if len(self.rows) and not self.cut:
            yield [], _idle(self.rows)  # more ranks than rows: take part in the exchange, add nothing
        for batch in self.cut:
            yield batch, self.rows.collate(batch)

    def __len__(self) -> int:
        return len(self.cut)
