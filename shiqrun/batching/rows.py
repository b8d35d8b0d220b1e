"""Rows, optimiser steps and micro-batches: which trajectories meet, as a pure function of seed and step.

Nothing here depends on what came before, so a resumed run sees exactly the batches that the killed one would have seen.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.packing import packed, padded
from shiqrun.types import ActionScores, Trajectories

Scores = Sequence[tuple[np.ndarray, ...]]
"""(logit, log_partition) of every action of every row, and with an anchor `[A, K]` further logits; float32."""


class Rows:
    """The trajectories of a split, numbered by row, with what is known of them beside the tokens.

    Args:
        trajectories: what `encode` made.
        pad: token id that fills rows; masks say where, never the id.
        together: rows of one prompt are never separated by a step or rank.
        compared: nor by a micro-batch, and "of one prompt" means of one group: they are compared with each other. None:
            as `together`.

    Attributes:
        packed: batches are read without padding, and what rows of a prompt share once (`batching/packing.py`).
        device: where they are read.
        prompt_value: `[rows]` float32, Q0 of each row's prompt, reward units, for losses that read it.
        value_target: of each row `[A]` float32, reward units, NaN where an action is not annotated; or None.
        behaviour_logp, acting_logp: of each row `[A]` float32, nats, where it was sampled; see `Trajectories`.
        source: of all rows; see `Trajectories`.
    """

    def __init__(
        self,
        trajectories: Sequence[EncodedTrajectory],
        pad: int,
        *,
        together: bool = False,
        compared: bool | None = None,
    ) -> None:
        self.trajectories = trajectories
        self.pad = pad
        self.together = together
        self.compared = together if compared is None else compared
        self.lengths = np.array([len(t.input_ids) for t in trajectories], np.int64)
        self.actions = np.array([len(t.action_index) for t in trajectories], np.int64)
        numbers: dict[str, int] = {}
        self.group = np.array([numbers.setdefault(t.group, len(numbers)) for t in trajectories], np.int64)
        self.prompts = len({t.prompt_id for t in trajectories})
        self.units = self._units()
        self.offset = np.zeros(len(trajectories), np.float32)
        self.packed, self.device = False, "cpu"
        self.prompt_value: np.ndarray | None = None
        self.value_target: Sequence[np.ndarray] | None = None
        self.behaviour_logp: Sequence[np.ndarray] | None = None
        self.acting_logp: Sequence[np.ndarray] | None = None
        self.source = "logged"
        self.reference: Scores | None = None
        self.anchor: tuple[int, int, int] | None = None  # tokens a state, vocabulary, seed

    def __len__(self) -> int:
        return len(self.trajectories)

    def _units(self) -> list[list[int]]:
        """Rows that stay together: single rows, or all rows of a prompt."""
        if not self.together:
            return [[i] for i in range(len(self))]
        names = self.group
        if not self.compared:
            numbers: dict[str, int] = {}
            names = np.array([numbers.setdefault(t.prompt_id, len(numbers)) for t in self.trajectories], np.int64)
        order = np.argsort(names, kind="stable")
        return [part.tolist() for part in np.split(order, np.flatnonzero(np.diff(names[order])) + 1) if len(part)]

    @cached_property
    def family(self) -> np.ndarray:
        """`[rows]`, equal for rows with the same tokens before their first action."""
        numbers: dict[bytes, int] = {}
        prompts = (t.input_ids[: t.action_index[0]] for t in self.trajectories)
        beginnings = (hashlib.blake2b(np.ascontiguousarray(p).data, digest_size=16).digest() for p in prompts)
        return np.array([numbers.setdefault(b, len(numbers)) for b in beginnings], np.int64)

    @cached_property
    def beginnings(self) -> np.ndarray:
        """`[rows]`, tokens before the first action."""
        return np.array([t.action_index[0] for t in self.trajectories], np.int64)

    def tokens_read(self, rows: Sequence[int]) -> int:
        """Tokens that one forward pass over these rows computes, at most: padded, or packed with shared prompts."""
        if not self.packed:
            return int(self.lengths[rows].max()) * len(rows)
        prompts = {self.family[i]: self.beginnings[i] for i in rows}
        return int(sum(self.lengths[i] - self.beginnings[i] for i in rows) + sum(prompts.values()))

    def micro_batches(self, units: "Units", tokens: int) -> list[list[int]]:
        """The rows of the units in batches of which each reads at most `tokens`; a larger unit stands alone.

        Units whose rows are compared are not cut.
        """
        if not self.compared:
            units = [[i] for unit in units for i in unit]
        if not self.packed:
            return micro_batches(self.lengths, units, tokens)
        cut: list[list[int]] = []
        read, last = 0, -1  # of the present batch: tokens, and the prompt of its last row
        for unit in sorted(units, key=lambda u: self.family[u[0]]):  # so that those of a prompt meet
            more = self.tokens_read(unit)
            again = self.beginnings[unit[0]] if self.family[unit[0]] == last else 0
            if cut and read + more - again <= tokens:
                cut[-1].extend(unit)
                read += more - int(again)
            else:
                cut.append(list(unit))
                read = more
            last = self.family[unit[-1]]
        return cut

    def share(self, units: "Units", rank: int, world: int) -> "Units":
        """Rank's units: sorted by the tokens they read and dealt in turn, so that ranks have about equal work."""
        return units if world == 1 else sorted(units, key=lambda u: -self.tokens_read(u))[rank::world]

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
        """The rows as one batch; each row's offset is taken from the reward of its last action."""
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
        read = torch.arange(ids.shape[1]) < lengths[:, None]
        batch = Trajectories(
            input_ids=ids,
            attention_mask=read,
            action_index=index,
            action_mask=mask,
            rewards=rewards.masked_fill(~mask, 0),
            group=torch.from_numpy(self.group[rows]),
            reference=self._reference(rows),
            prompt_value=None if self.prompt_value is None else torch.from_numpy(self.prompt_value[rows]),
            behaviour_logp=_of_actions(self.behaviour_logp, rows, 0.0),
            acting_logp=_of_actions(self.acting_logp, rows, 0.0),
            value_target=_of_actions(self.value_target, rows, float("nan")),
            source=self.source,
            offset=torch.from_numpy(self.offset[rows]),
            anchor_tokens=self._anchor(rows),
        )
        if self.packed:
            return batch.laid_out(packed(picked, index.shape[1], device=self.device))
        return batch.laid_out(padded(ids, read, index, mask))

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


def _of_actions(known: Sequence[np.ndarray] | None, rows: Sequence[int], padding: float) -> torch.Tensor | None:
    """`[B, A]` of numbers that are known of each row's actions."""
    return None if known is None else pad_sequence([torch.from_numpy(known[i]) for i in rows], True, padding)


Units = Sequence[Sequence[int]]
"""Lists of rows; the rows of one list stay together."""


def micro_batches(lengths: np.ndarray, units: Units, tokens: int) -> list[list[int]]:
    """The rows of the units in batches of at most `tokens` padded tokens, longest first; a larger unit stands alone."""
    cut: list[list[int]] = []
    for unit in sorted(units, key=lambda u: -lengths[u].max()):
        if cut and lengths[cut[-1]].max() * (len(cut[-1]) + len(unit)) <= tokens:
            cut[-1].extend(unit)
        else:
            cut.append(list(unit))
    return cut


@lru_cache(maxsize=2)
def _order(units: int, seed: int, epoch: int) -> np.ndarray:
    """The units of an epoch, shuffled."""
    order = np.random.default_rng([seed, epoch]).permutation(units)
    order.setflags(write=False)
    return order


def step_units(units: int, per_step: int, seed: int, step: int) -> np.ndarray:
    """Units of optimiser step `step` (from 0): epochs without replacement, the last step of an epoch may be short."""
    epoch, index = divmod(step, -(-units // per_step))
    return _order(units, seed, epoch)[index * per_step : (index + 1) * per_step]


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
        return rows.micro_batches(rows.share([rows.units[i] for i in picked], self.rank, self.world), self.tokens)

    def __iter__(self) -> Iterator[list[Trajectories]]:
        step = self.start
        while True:
            yield [self.rows.collate(b) for b in self.rows_of(step)] or [_idle(self.rows)]
            step += 1


def _idle(rows: Rows) -> Trajectories:
    batch = rows.collate([0])
    none, rewards = torch.zeros_like(batch.action_mask), torch.zeros_like(batch.rewards)
    return replace(batch, action_mask=none, rewards=rewards)


class Batches(IterableDataset):
    """One rank's share of a whole split, once, in batches that read at most `tokens` tokens."""

    def __init__(self, rows: Rows, *, tokens: int, rank: int = 0, world: int = 1) -> None:
        self.rows = rows
        self.cut = rows.micro_batches(rows.share(rows.units, rank, world), tokens)

    def __iter__(self) -> Iterator[Any]:
        if len(self.rows) and not self.cut:
            yield [], _idle(self.rows)  # more ranks than rows: take part in the exchange, add nothing
        for batch in self.cut:
            yield batch, self.rows.collate(batch)

    def __len__(self) -> int:
        return len(self.cut)
