"""A row file holds named arrays and a few facts; it is written as a whole, checked when it is opened, and mapped.

The arrays stand one after another, each at a multiple of 64 bytes. Behind them stands a description in JSON (facts,
and of each array its type, place, size and checksum), and last the length of the description and `MAGIC`.
"""

import json
import mmap
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiqrun.util.atomic import atomic_path

MAGIC = b"shiqrows"
ALIGNED = 64
BLOCK = 1 << 22
"""Bytes that are read at a time to check a file."""
Pieces = Iterable[np.ndarray]
"""A one-dimensional array in pieces, which are written one after another so that the whole is never in memory."""


Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps an iterable, to show how far it is; the second argument says of what."""


def unshown(items: Iterable[Any], _: str) -> Iterable[Any]:
    """Return the items, and show nothing of how far they are."""
    return items


class DamagedFile(ValueError):
    """A row file is not as it was written, or is no row file."""


def write_row_file(
    path: Path,
    arrays: Mapping[str, tuple[np.dtype[Any], Pieces]],
    facts: Mapping[str, Any],
    progress: Progress = unshown,
) -> None:
    """Write a row file, which takes the name `path` when it is whole.

    Args:
        path: of the file.
        arrays: by name the type of each array and its pieces.
        facts: what else is to be known, as JSON.
        progress: shows how far the writing is.
    """
    described: dict[str, Any] = {}
    with atomic_path(path) as partial, partial.open("wb") as file:
        for name, (kind, pieces) in progress(arrays.items(), "writing rows"):
            file.write(bytes(-file.tell() % ALIGNED))
            start, checksum = file.tell(), 0
            for piece in pieces:
                data = np.ascontiguousarray(piece, kind).data.cast("B") if len(piece) else b""
                checksum = zlib.crc32(data, checksum)
                file.write(data)
            described[name] = [kind.str, start, (file.tell() - start) // kind.itemsize, checksum]
        text = json.dumps({"facts": facts, "arrays": described}).encode()
        file.write(text + zlib.crc32(text).to_bytes(8, "little") + len(text).to_bytes(8, "little") + MAGIC)


class RowFile:
    """A `RowFile` is a row file that has been checked; its arrays are read-only views, or are read when asked for.

    Args:
        path: of the file.
        progress: shows how far the check is.
        mapped: an array is a view of the mapped file, which takes memory only for what is read of it; else it is read
            anew each time, and takes memory as long as it is kept.

    Attributes:
        facts: what was written beside the arrays.

    Raises:
        DamagedFile: a number in it is not the one that was written.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, progress: Progress = unshown, *, mapped: bool = True) -> None:
        self.path = path
        with path.open("rb") as file:
            described = _description(file)
            self.facts: dict[str, Any] = described["facts"]
            self._described: dict[str, Any] = described["arrays"]
            for name, (kind, start, count, checksum) in progress(self._described.items(), "checking stored rows"):
                _check(file, name, start, count * np.dtype(kind).itemsize, checksum)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else None

    def __getitem__(self, name: str) -> np.ndarray:
        kind, start, count, _ = self._described[name]
        if not count:
            return np.zeros(0, np.dtype(kind))
        if self._map is None:
            return np.fromfile(self.path, np.dtype(kind), count, offset=start)
        return np.frombuffer(self._map, np.dtype(kind), count, start)


def _description(file: Any) -> dict[str, Any]:
    """Return the description at the end of an open row file after checking it."""
    size = file.seek(0, 2)
    tail = len(MAGIC) + 16
    file.seek(max(size - tail, 0))
    end = file.read(tail)
    length = int.from_bytes(end[8:16], "little")
    if len(end) < tail or end[16:] != MAGIC or length > size - tail:
        raise DamagedFile("it is no whole file of rows")
    file.seek(size - tail - length)
    text = file.read(length)
    if zlib.crc32(text) != int.from_bytes(end[:8], "little"):
        raise DamagedFile("its description is not the one that was written")
    found: dict[str, Any] = json.loads(text)
    return found


def _check(file: Any, name: str, start: int, size: int, checksum: int) -> None:
    """Check the bytes of an array; they are read, not mapped, so that they need not stay in memory."""
    file.seek(start)
    found, left = 0, size
    while left:
        data = file.read(min(left, BLOCK))
        if not data:
            break
        found, left = zlib.crc32(data, found), left - len(data)
    if left or found != checksum:
        raise DamagedFile(f"its {name} are not those that were written")
