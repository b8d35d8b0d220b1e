"""`Rows` is the immutable table of a split's trajectories: tokens, rewards, and named columns of further numbers.

Every stage that knows more about the rows returns a new table (`with_columns`, `with_layout`, ...); nothing changes
one. Copies share the trajectories and whatever was computed from them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from shiqrun.batching.columns import COLUMNS, AnchorTokens, Values, concat, pad, select
from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.joined_trajectories import JoinedTrajectories, counted
from shiqrun.batching.micro_batches import (
    RowsByNumber,
    SingleRows,
    Units,
    deal,
    packed_micro_batches,
    padded_micro_batches,
)
from shiqrun.batching.packing import packed_layout, padded_layout
from shiqrun.batching.shares import Parts, Shares
from shiqrun.batching.stored_rows import CountedTrajectories, StoredTrajectories
from shiqrun.types import Trajectories

SETTINGS = ("pad", "together", "compared", "packed", "device", "source", "anchor")


@dataclass(frozen=True, eq=False)
class Rows:
    """A `Rows` holds encoded trajectories, numbered from 0, with all that a loss may read of each of them.

    Attributes:
        trajectories: what `encode` made; tokens, positions of the actions, rewards.
        pad: token id that fills rows of a padded batch; masks say where, never the id.
        together: an optimiser step or a rank never separates rows of one prompt.
        compared: no micro-batch separates rows of one group either, which a loss compares. None: as `together`.
        packed: batches are read without padding, and a shared prompt once (`batching/packing.py`).
        device: type of the device that reads packed batches; decides how branches are put together.
        source: where all rows came from; see `Trajectories`.
        anchor: how the anchor's tokens are drawn; None without an anchor of uniform tokens.
        parts: the data set of a mixture that each row is of; None elsewhere, and for a selection of rows.
        mismatched: every row's prompt with a completion of another one; None where no loss reads them.
        columns: see `batching/columns.py`; `offset` is always there, 0 unless it is given.
    """

    trajectories: Sequence[EncodedTrajectory]
    pad: int
    together: bool = field(default=False, kw_only=True)
    compared: bool | None = field(default=None, kw_only=True)
    packed: bool = field(default=False, kw_only=True)
    device: str = field(default="cpu", kw_only=True)
    source: str = field(default="logged", kw_only=True)
    anchor: AnchorTokens | None = field(default=None, kw_only=True)
    parts: Parts | None = field(default=None, kw_only=True)
    mismatched: "Rows | None" = field(default=None, kw_only=True)
    columns: Mapping[str, Values] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if self.compared is None:
            object.__setattr__(self, "compared", self.together)
        if "offset" not in self.columns:
            object.__setattr__(self, "columns", {**self.columns, "offset": np.zeros(len(self), np.float32)})

    def __len__(self) -> int:
        return len(self.trajectories)

    # ------------------------------------------------------------------ new tables from this one
    def _replace(self, **changes: Any) -> "Rows":
        """Return a copy with other values of fields on which no cached property depends."""
        copy: Rows = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    def with_columns(self, **columns: Values) -> "Rows":
        """Return these rows with further columns, or others in place of those of the same name.

        Raises:
            ValueError: a name that `COLUMNS` does not know, or a column with another number of rows.
        """
        for name, values in columns.items():
            if name not in COLUMNS:
                raise ValueError(f"column {name!r}: expected one of {', '.join(COLUMNS)}")
            if len(values) != len(self):
                raise ValueError(f"column {name!r} has {len(values)} rows, expected {len(self)}")
        return self._replace(columns={**self.columns, **columns})

    def with_column(self, name: str, values: Values) -> "Rows":
        """Return these rows with one further column; see `with_columns`."""
        return self.with_columns(**{name: values})

    def with_layout(self, *, packed: bool, device: str = "cpu") -> "Rows":
        """Return these rows with another layout of their batches: packed for a type of device, or padded."""
        joined = self.mismatched and self.mismatched.with_layout(packed=packed, device=device)
        return self._replace(packed=packed, device=device, mismatched=joined)

    def with_mismatched(self, mismatched: "Rows") -> "Rows":
        """Return these rows with a table of as many mismatched trajectories."""
        return self._replace(mismatched=mismatched)

    def with_source(self, source: str) -> "Rows":
        """Return these rows under the name of another source."""
        return self._replace(source=source)

    def with_anchor(self, anchor: AnchorTokens | None) -> "Rows":
        """Return these rows with another way of drawing the anchor's tokens."""
        return self._replace(anchor=anchor)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    def select(self, picked: Sequence[int]) -> "Rows":
        """Return the picked rows, numbered anew in this order, with their columns.

        The anchor draws its tokens by the new row numbers.
        """
        columns = {name: select(values, picked) for name, values in self.columns.items()}
        given: Sequence[EncodedTrajectory] = self.trajectories
        if isinstance(given, StoredTrajectories):
            given = given.pick(np.array(picked, np.int64))
        else:
            given = [given[i] for i in picked]
        return type(self)(given, **self._settings(), columns=columns)

    def concat(self, *others: "Rows") -> "Rows":
        """Return the rows of several tables, one after another, numbered anew.

        Raises:
            ValueError: tables that differ in their columns, or in anything else than their rows.
        """
        for other in others:
            if other._settings() != self._settings() or other.columns.keys() != self.columns.keys():
                raise ValueError("rows with other columns, layout, source, anchor or grouping cannot be concatenated")
        tables = (self, *others)
        columns = {name: concat([table.columns[name] for table in tables]) for name in self.columns}
        trajectories = [t for table in tables for t in table.trajectories]
        return type(self)(trajectories, **self._settings(), columns=columns)

    # ------------------------------------------------------------------ what the trajectories are
    @cached_property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each row, `[rows]` int64."""
        return self.numbers.plain("lengths")

    @cached_property
    def actions(self) -> np.ndarray:
        """Return the number of actions of each row, `[rows]` int64."""
        return self.numbers.plain("actions")

    @cached_property
    def group(self) -> np.ndarray:
        """Return the group number of each row, `[rows]` int64; rows of one group may be compared with each other."""
        return self.numbers.numbers("group")

    @cached_property
    def prompts(self) -> int:
        """Return the number of different prompts, by `prompt_id`."""
        return int(self.numbers.numbers("prompt").max(initial=-1)) + 1

    @cached_property
    def prompt_number(self) -> np.ndarray:
        """Return a number per row, `[rows]` int64, equal for rows with the same tokens before their first action."""
        return self.numbers.numbers("family")

    @cached_property
    def prompt_lengths(self) -> np.ndarray:
        """Return the number of tokens before the first action of each row, `[rows]` int64."""
        return self.numbers.plain("prompt_lengths")

    @property
    def returns(self) -> np.ndarray:
        """Return the sum of each row's rewards, `[rows]` float32, without the offset; NaN where the data has none."""
        return self.numbers.plain("returns")

    @property
    def rewarded(self) -> np.ndarray:
        """Return whether each row has rewards, `[rows]` bool."""
        return self.numbers.plain("rewarded")

    @property
    def numbers(self) -> "StoredTrajectories | CountedTrajectories | JoinedTrajectories":
        """Return what counts the trajectories."""
        return counted(self.trajectories)

    # ------------------------------------------------------------------ how they are dealt to steps and batches
    @cached_property
    def units(self) -> Units:
        """Return the lists of rows that stay together: single rows, or all rows of a prompt."""
        if not self.together:
            return SingleRows(len(self))
        return RowsByNumber(self.group if self.compared else self.numbers.numbers("prompt"))

    @cached_property
    def shares(self) -> Shares | None:
        """Return how often an epoch visits the units of each part of a mixture; None where it visits each once."""
        if self.parts is None:
            return None
        grouped = self.group if self.compared else self.numbers.numbers("prompt")
        return self.parts.shares(grouped if self.together else np.arange(len(self)))

    @property
    def epoch_units(self) -> int:
        """Return the number of units that an epoch visits."""
        return len(self.units) if self.shares is None else sum(self.shares.visits)

    def units_per_step(self, batch_size: int) -> int:
        """Return the number of units of an optimiser step: as many as hold about `batch_size` rows, at least one."""
        rows: float = len(self)
        if self.parts is not None and self.shares is not None:
            sizes = np.bincount(self.parts.number, minlength=len(self.parts.names)).tolist()
            rows = sum(v * n / u for n, u, v in zip(sizes, self.shares.units, self.shares.visits, strict=True))
        return max(1, round(batch_size * self.epoch_units / max(rows, 1)))

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of optimiser steps of an epoch: one pass over all rows, or those that weights ask for."""
        return -(-self.epoch_units // self.units_per_step(batch_size))

    def share(self, units: Units, rank: int, world: int) -> Units:
        """Return the units of one rank: the longest first, each to the rank that reads the fewest tokens so far."""
        return units if world == 1 else deal([self.tokens_read(u) for u in units], units, world)[rank]

    def tokens_read(self, picked: Sequence[int]) -> int:
        """Return the most tokens that one forward pass over these rows computes: padded, or with prompts shared."""
        if not self.packed:
            return int(self.lengths[picked].max()) * len(picked)
        prompts = {self.prompt_number[i]: self.prompt_lengths[i] for i in picked}
        return int(sum(self.lengths[i] - self.prompt_lengths[i] for i in picked) + sum(prompts.values()))

    def micro_batches(self, units: Units, tokens: int) -> list[list[int]]:
        """Return the units' rows in micro-batches, each of which reads at most `tokens` tokens.

        Units whose rows are compared are not cut; one that reads more tokens forms a batch of its own. A batch has rows
        of one part of a mixture, so that each part has its own metrics.
        """
        if not self.compared:
            units = [[i] for unit in units for i in unit]
        if self.parts is None:
            return self._micro_batches(units, tokens)
        apart: dict[int, list[Sequence[int]]] = {}
        for unit in units:
            apart.setdefault(int(self.parts.number[unit[0]]), []).append(unit)
        return [batch for part in sorted(apart) for batch in self._micro_batches(apart[part], tokens)]

    def _micro_batches(self, units: Units, tokens: int) -> list[list[int]]:
        if not self.packed:
            return padded_micro_batches(self.lengths, units, tokens)
        known = {"prompt_number": self.prompt_number, "prompt_lengths": self.prompt_lengths}
        return packed_micro_batches(units, tokens, tokens_read=self.tokens_read, **known)

    # ------------------------------------------------------------------ batches
    def collate(self, picked: Sequence[int]) -> Trajectories:
        """Return the picked rows as one batch; each row's offset is subtracted from the reward of its last action."""
        trajectories = [self.trajectories[i] for i in picked]
        ids = pad([t.input_ids.astype(np.int64) for t in trajectories], self.pad)
        index = pad([t.action_index.astype(np.int64) for t in trajectories], 1)
        mask = torch.arange(index.shape[1]) < torch.from_numpy(self.actions[picked])[:, None]
        read = torch.arange(ids.shape[1]) < torch.from_numpy(self.lengths[picked])[:, None]
        columns: dict[str, Any] = {name: COLUMNS[name](values, picked) for name, values in self.columns.items()}
        batch = Trajectories(
            input_ids=ids,
            attention_mask=read,
            action_index=index,
            action_mask=mask,
            rewards=_rewards(trajectories, columns["offset"], index.shape[1]).masked_fill(~mask, 0),
            group=torch.from_numpy(self._groups(picked)),
            source=self.source,
            part="" if self.parts is None else self.parts.name(picked[0]),
            anchor_tokens=None if self.anchor is None else self.anchor.draw(picked, self.actions),
            mismatched=None if self.mismatched is None else self.mismatched.collate(picked),
            **columns,
        )
        if self.packed:
            return batch.with_layout(packed_layout(trajectories, index.shape[1], device=self.device))
        return batch.with_layout(padded_layout(ids, read, index, mask))

    def _groups(self, picked: Sequence[int]) -> np.ndarray:
        """Return the group number of each picked row; a group that is picked twice is two groups."""
        times, before = Counter[int](), []
        for row in picked:
            before.append(times[row])
            times[row] += 1
        return self.group[picked] + np.array(before, np.int64) * len(self)


def _rewards(trajectories: Sequence[EncodedTrajectory], offset: torch.Tensor, actions: int) -> torch.Tensor:
    """Return the reward of every action, `[B, A]`, less the offset at the last one; NaN where the data has none."""
    rewards, less = np.full((len(trajectories), actions), np.nan, np.float32), offset.tolist()
    for row, t in enumerate(trajectories):
        if t.rewards is not None:
            rewards[row, : len(t.rewards)] = t.rewards
            rewards[row, len(t.rewards) - 1] -= less[row]
    return torch.from_numpy(rewards)
