"""Mismatched trajectories join every prompt with a completion of another prompt, which KTO estimates a KL from.

The partner of a row is drawn once, by the rows alone: not by the seed of a run, a step, a rank or a micro-batch. So the
reference's scores of mismatched trajectories are cached like those of any others, and serve all runs of a sweep.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows


class MismatchedTrajectories(Sequence[EncodedTrajectory]):
    """`MismatchedTrajectories` are the prompts of some rows, each with the completion of its partner, and no rewards.

    Args:
        trajectories: the rows.
        partner: `[rows]`, number of the row whose completion follows each prompt.
        longest: tokens of the longest row, at which a joined trajectory is cut off: the model reads no longer one.
    """

    def __init__(self, trajectories: Sequence[EncodedTrajectory], partner: np.ndarray, longest: int) -> None:
        self.trajectories, self.partner, self.longest = trajectories, partner, longest

    def __len__(self) -> int:
        return len(self.partner)

    @overload
    def __getitem__(self, row: int) -> EncodedTrajectory: ...
    @overload
    def __getitem__(self, row: slice) -> list[EncodedTrajectory]: ...
    def __getitem__(self, row: Any) -> Any:
        """Return a trajectory, or a list of them for a slice."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        own, other = self.trajectories[row], self.trajectories[int(self.partner[row])]
        start, begins = int(own.action_index[0]), int(other.action_index[0])
        ids = np.concatenate([own.input_ids[:start], other.input_ids[begins:]])[: self.longest]
        index = other.action_index - begins + start
        return replace(own, input_ids=ids, action_index=index[index < len(ids)].astype(np.int32), rewards=None)


def partners(prompt_number: np.ndarray) -> np.ndarray | None:
    """Return for every row the number of one that answers another prompt, `[rows]` int64; None where there is none.

    Rows are put into a random order that is always the same, and each takes the next one with another prompt.

    Args:
        prompt_number: `[rows]`, equal for rows with the same prompt.
    """
    if len(np.unique(prompt_number)) < 2:
        return None
    order = np.random.default_rng(0).permutation(len(prompt_number))
    ordered = prompt_number[order]
    starts = np.flatnonzero(ordered != np.roll(ordered, 1))  # where another prompt begins than that of the row before
    after = np.searchsorted(starts, np.arange(len(order)), side="right") % len(starts)
    found = np.empty(len(order), np.int64)
    found[order] = order[starts[after]]
    return found


def with_mismatched(rows: Rows) -> Rows:
    """Return the rows with a mismatched trajectory for each; as they are where all rows answer one prompt."""
    partner = None if rows.mismatched is not None else partners(rows.prompt_number)
    if partner is None:
        return rows
    joined = MismatchedTrajectories(rows.trajectories, partner, int(rows.lengths.max()))
    return rows.with_mismatched(Rows(joined, rows.pad, packed=rows.packed, device=rows.device, source=rows.source))
