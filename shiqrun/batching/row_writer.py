"""`RowWriter` encodes a data set part by part into the file that the row store keeps.

Parts of `PART` examples go to disk as they are made, so that memory does not grow with the data, and a killed job's
parts are used again. At the end they are joined.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.fingerprints import add_groups, add_row
from shiqrun.batching.row_file import DamagedFile, Pieces, Progress, RowFile, unshown, write_row_file
from shiqrun.batching.selection import DistinctRows, TrainedFamilies, drop_undecided
from shiqrun.batching.stored_rows import (
    BYTE,
    INT64,
    KEY,
    NAMED,
    PLAIN,
    RAGGED,
    flat_arrays,
    numbered,
    trajectories_of,
)
from shiqrun.data.drops import Drops
from shiqrun.types import Example

log = logging.getLogger("shiqrun")
PART = 4096
"""Examples of a part: what a kill loses at most."""
SPLITS = ("train", "val")
PartArrays = Mapping[str, np.ndarray]


class Encode(Protocol):
    """`Encode` encodes some examples of a split, numbered from `first`, and counts the dropped ones by reason."""

    def __call__(  # noqa: D102 - a protocol of one call
        self, examples: Iterable[Example], *, dropped: Counter[str], first: int = 0
    ) -> Iterable[EncodedTrajectory]: ...


class RowWriter:
    """A `RowWriter` encodes the examples of both splits part by part, and joins the parts to one file.

    Args:
        directory: of the parts.
        distinct: keeps the first of equal trajectories of a group.

    Attributes:
        dropped: number of completions left out, by reason.
    """

    def __init__(self, directory: Path, *, distinct: bool) -> None:
        self.directory, self.distinct = directory, distinct
        self.dropped = Drops()
        self._parts: dict[str, list[PartArrays]] = {split: [] for split in SPLITS}
        self._digest = blake2b(digest_size=16)

    def add(self, split: str, examples: Iterator[Example], encode: Encode) -> None:
        """Encode all examples of a split; parts that are on disk from before are not encoded again."""
        seen, number = DistinctRows() if self.distinct else None, 0
        trained = TrainedFamilies(self.of("train").keys("family")) if split == "val" else None
        while chunk := list(islice(examples, PART)):
            path = self.directory / f"{split}-{number:05d}.part"
            part: Any = self._found(path, len(chunk))
            rows: Sequence[EncodedTrajectory]
            if part is None:
                lost = Drops()
                rows = drop_undecided(encode(chunk, dropped=lost, first=number * PART), lost)
                rows = rows if trained is None else trained.without(rows, lost)
                rows = rows if seen is None else seen.kept(rows, lost)
                part = flat_arrays(rows)
                if len(chunk) == PART:
                    facts = {"examples": len(chunk), **lost.facts()}
                    write_row_file(path, {name: (values.dtype, [values]) for name, values in part.items()}, facts)
                    part = RowFile(path, mapped=False)
            else:
                lost = Drops.of(part.facts)
                rows = trajectories_of(part)
                if seen is not None:
                    seen.kept(rows, Counter())
            for row in rows:
                add_row(self._digest, row)
            self.dropped.update(lost)
            self._parts[split].append(part)
            number += 1
        add_groups(self._digest, self.of(split).numbers("group"))

    def _found(self, path: Path, examples: int) -> RowFile | None:
        """Return the part of a killed job, or None where there is none or it is damaged."""
        try:
            part = RowFile(path, mapped=False)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            log.warning("%s: %s; its rows are encoded again", path, error)
            return None
        return part if part.facts["examples"] == examples else None

    def of(self, split: str) -> "WrittenNumbers":
        """Return the numbers of a split's trajectories."""
        return WrittenNumbers(self._parts[split])

    def join(self, path: Path, names: np.ndarray, said: list[tuple[int, str]], progress: Progress = unshown) -> None:
        """Write the file of all rows.

        Args:
            path: of the file.
            names: names of the training prompts, sorted, each once.
            said: level and text of what reading the data logged, which is said again when the file is opened.
            progress: shows how far the writing is.
        """
        arrays: dict[str, tuple[np.dtype[Any], Pieces]] = {"names": (BYTE, [names.view(BYTE)])}
        for split, parts in self._parts.items():
            for name, kind in (*RAGGED.items(), *PLAIN.items()):
                arrays[f"{split}/{name}"] = kind, _pieces(parts, name)
            for name in RAGGED:
                arrays[f"{split}/{name}_end"] = INT64, _ends(_pieces(parts, f"{name}_count"))
            for name in NAMED:
                arrays[f"{split}/{name}"] = INT64, _later(self.of(split).numbers, name)
            arrays[f"{split}/family_key"] = KEY, _pieces(parts, "family_key")
        facts = {"width": names.dtype.itemsize, **self.dropped.facts(), "said": said}
        write_row_file(path, arrays, {**facts, "fingerprint": self._digest.hexdigest()}, progress)


class WrittenNumbers:
    """`WrittenNumbers` has the numbers of trajectories in parts that are not joined yet.

    Args:
        parts: of one split.
    """

    def __init__(self, parts: Sequence[PartArrays]) -> None:
        self.parts = parts

    def plain(self, name: str) -> np.ndarray:
        """Return one number of each trajectory, `[rows]`: a name of `PLAIN`."""
        return np.concatenate([np.zeros(0, PLAIN[name]), *_pieces(self.parts, name)])

    def numbers(self, name: str) -> np.ndarray:
        """Return the number of each trajectory's prompt, group or family, `[rows]` int64, from 0 without gaps."""
        return numbered(self.keys(name))

    def keys(self, name: str) -> np.ndarray:
        """Return the hash by which each trajectory's prompt, group or family is told apart, two numbers each."""
        return np.concatenate([np.zeros(0, KEY), *_pieces(self.parts, f"{name}_key")])


def _pieces(parts: Sequence[PartArrays], name: str) -> Iterator[np.ndarray]:
    """Yield an array of each part."""
    return (part[name] for part in parts)


def _ends(counts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield where each trajectory's entries end, from how many it has in each part."""
    before = 0
    for count in counts:
        ends = before + np.cumsum(count)
        before = int(ends[-1]) if len(ends) else before
        yield ends


def _later(compute: Callable[[str], np.ndarray], name: str) -> Iterator[np.ndarray]:
    """Yield the numbers of a split's names, which are computed when they are written."""
    yield compute(name)
