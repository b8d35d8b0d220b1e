"""`JoinedTrajectories` are those of several data sets one after another, read from where each keeps its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.stored_rows import CountedTrajectories, StoredTrajectories
from shiqrun.data.part_names import id_in_mixture


class JoinedTrajectories(Sequence[EncodedTrajectory]):
    """`JoinedTrajectories` are the trajectories of a mixture's split; no group, prompt or family is of two parts.

    Args:
        parts: the trajectories of each part, by its name.
    """

    def __init__(self, parts: Mapping[str, Sequence[EncodedTrajectory]]) -> None:
        self.names, self.parts = tuple(parts), tuple(parts.values())
        self.sizes = np.array([len(part) for part in self.parts])
        self.ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @overload
    def __getitem__(self, row: int) -> EncodedTrajectory: ...
    @overload
    def __getitem__(self, row: slice) -> list[EncodedTrajectory]: ...
    def __getitem__(self, row: Any) -> Any:
        """Return a trajectory, or a list of them for a slice."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = int(row) % len(self)
        part = int(np.searchsorted(self.ends, row, "right"))
        found, name = self.parts[part][row - int(self.ends[part] - self.sizes[part])], self.names[part]
        return replace(found, prompt_id=id_in_mixture(name, found.prompt_id), group=f"{name}/{found.group}")

    def part_numbers(self) -> np.ndarray:
        """Return the number of the part of each trajectory, `[rows]` int64."""
        return np.repeat(np.arange(len(self.parts)), self.sizes)

    def plain(self, name: str) -> np.ndarray:
        """Return one number of each trajectory, `[rows]`: a name of `PLAIN`."""
        return np.concatenate([counted(part).plain(name) for part in self.parts])

    def numbers(self, name: str) -> np.ndarray:
        """Return the number of each trajectory's prompt, group or family, `[rows]` int64, from 0 without gaps."""
        found, before = [], 0
        for part in self.parts:
            numbers = counted(part).numbers(name)
            found.append(numbers + before)
            before += int(numbers.max(initial=-1)) + 1
        return np.concatenate(found)


def counted(
    rows: Sequence[EncodedTrajectory],
) -> StoredTrajectories | CountedTrajectories | JoinedTrajectories:
    """Return what counts trajectories: those of a file have counts beside them."""
    return rows if isinstance(rows, StoredTrajectories | JoinedTrajectories) else CountedTrajectories(rows)
