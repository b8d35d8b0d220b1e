"""This module cuts the rows of an optimiser step into micro-batches that read a bounded number of tokens.

A *unit* is a list of rows that belong together: a single row, or all completions of one prompt.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Units = Sequence[Sequence[int]]
"""Lists of row numbers; the rows of one list stay together."""


class SingleRows(Sequence[Sequence[int]]):
    """`SingleRows` are the units of rows that need not stay together: each row alone, in order."""

    def __init__(self, rows: int) -> None:
        self.rows = range(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, unit: Any) -> Any:
        """Return a unit, or a list of them for a slice."""
        found = self.rows[unit]
        return [found] if isinstance(found, int) else [[row] for row in found]


class RowsByNumber(Sequence[Sequence[int]]):
    """`RowsByNumber` are the units of rows of which those with equal numbers stay together.

    Args:
        numbers: `[rows]` int64, from 0 without gaps; units are sorted by them.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.order = np.argsort(numbers, kind="stable")
        self.ends = np.cumsum(np.bincount(numbers))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, unit: Any) -> Any:
        """Return a unit, or a list of them for a slice."""
        if isinstance(unit, slice):
            return [self[i] for i in range(*unit.indices(len(self)))]
        unit = range(len(self))[unit]
        return self.order[self.ends[unit - 1] if unit else 0 : self.ends[unit]].tolist()


def deal(work: Sequence[int], units: Units, world: int) -> list[list[Sequence[int]]]:
    """Return the units of each rank; the one with most work goes first, each to the rank with the least so far.

    Every rank finds the same, so that nothing need be exchanged.

    Args:
        work: `[units]`, tokens that each unit reads.
        units: see `Units`.
        world: number of ranks.
    """
    dealt: list[list[Sequence[int]]] = [[] for _ in range(world)]
    ranks = [(0, rank) for rank in range(world)]  # a heap of (work so far, rank)
    for i in sorted(range(len(units)), key=lambda i: -work[i]):
        done, rank = ranks[0]
        dealt[rank].append(units[i])
        heapq.heapreplace(ranks, (done + work[i], rank))
    return dealt


def padded_micro_batches(lengths: np.ndarray, units: Units, tokens: int) -> list[list[int]]:
    """Return the units' rows in batches of at most `tokens` tokens, padding included, the longest rows first.

    A unit that has more tokens forms a batch of its own.

    Args:
        lengths: `[rows]`, tokens of every row of the split.
        units: see `Units`.
        tokens: of one forward pass.
    """
    batches: list[list[int]] = []
    longest = 0  # row of the current batch: its first unit has it
    for length, unit in sorted(((int(lengths[u].max()), u) for u in units), key=lambda pair: -pair[0]):
        if batches and longest * (len(batches[-1]) + len(unit)) <= tokens:
            batches[-1].extend(unit)
        else:
            batches.append(list(unit))
            longest = length
    return batches


def packed_micro_batches(
    units: Units,
    tokens: int,
    *,
    tokens_read: Callable[[Sequence[int]], int],
    prompt_number: np.ndarray,
    prompt_lengths: np.ndarray,
) -> list[list[int]]:
    """Return the units' rows in batches that read at most `tokens` tokens, where rows of a prompt share its tokens.

    Units are sorted by prompt, so that those of one prompt meet in a batch and its tokens are read once. A unit that
    reads more tokens forms a batch of its own.

    Args:
        units: see `Units`.
        tokens: of one forward pass.
        tokens_read: tokens that a list of rows reads in one packed batch.
        prompt_number: `[rows]`, equal for rows with the same prompt tokens.
        prompt_lengths: `[rows]`, tokens of each row's prompt.
    """
    batches: list[list[int]] = []
    read, last_prompt = 0, -1  # tokens of the current batch, and the prompt of its last row
    for unit in sorted(units, key=lambda u: prompt_number[u[0]]):
        added = tokens_read(unit)
        shared = int(prompt_lengths[unit[0]]) if prompt_number[unit[0]] == last_prompt else 0
        if batches and read + added - shared <= tokens:
            batches[-1].extend(unit)
            read += added - shared
        else:
            batches.append(list(unit))
            read = added
        last_prompt = prompt_number[unit[-1]]
    return batches
