"""The reference's scores are stored as an Arrow file, which is written as a whole and mapped into memory to read.

A row is a trajectory: its number, and lists with one float32 an action (K an action for `further`, with an anchor).
Trajectories stand in the order of scoring, in record batches. The schema's metadata holds the cache key and a hash of
the numbers. A file takes 8 bytes an action and about 20 bytes a trajectory, and memory only for what is read.
"""

import hashlib
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from shiqrun.errors import InputError
from shiqrun.util.atomic import atomic_path

KEY, SECONDS, DIGEST = b"key", b"seconds", b"digest"
"""The metadata of a file: the cache key, the seconds that computing took, and a hash of the numbers."""
ROW_BYTES = 32
"""Bytes of a trajectory beside its actions, at most: its number and the ends of its lists."""
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)
"""The errors that reading a damaged or foreign file raises."""


class ExpectedScores(NamedTuple):
    """An `ExpectedScores` describes the scores that a file of reference scores has to hold.

    Attributes:
        key: from `cache_key`.
        actions: `[rows]`, number of actions of each trajectory.
        further: K, the logits of further tokens at each action; 0 without an anchor.
    """

    key: str
    actions: np.ndarray
    further: int

    @property
    def widths(self) -> list[int]:
        """Return the count of numbers that each column has at an action."""
        return [1, 1, self.further] if self.further else [1, 1]

    def size(self) -> int:
        """Return the approximate size of the whole file in bytes."""
        return int(self.actions.sum()) * 4 * sum(self.widths) + len(self.actions) * ROW_BYTES + 4096

    def schema(self, **metadata: Any) -> pa.Schema:
        """Return the Arrow schema of a file with the key and further `metadata`."""
        names = ("logit", "log_partition", "further")[: len(self.widths)]
        fields = [pa.field("row", pa.int64()), *(pa.field(name, pa.list_(pa.float32())) for name in names)]
        return pa.schema(fields, {"key": self.key, **{k: str(v) for k, v in metadata.items()}})

    def check(self, reader: pa.RecordBatchFileReader) -> dict[bytes, bytes]:
        """Check that a file holds these scores, and return its metadata.

        Raises:
            ValueError: the file has other columns or another key's scores.
        """
        metadata: dict[bytes, bytes] = reader.schema.metadata or {}
        if not reader.schema.equals(self.schema()):
            raise ValueError("its columns are not those of reference scores")
        if metadata.get(KEY) != self.key.encode():
            raise ValueError("it holds the scores of another model or other data")
        return metadata

    def rows_of(self, batch: pa.RecordBatch) -> np.ndarray:
        """Return the row numbers of the trajectories in a record batch after checking them.

        Raises:
            ValueError: a trajectory that the data do not have, or one with another number of actions.
        """
        row: np.ndarray = batch.column(0).to_numpy()
        if batch.column(0).null_count or (len(row) and not 0 <= row.min() <= row.max() < len(self.actions)):
            raise ValueError("it holds trajectories that the data do not have")
        for column, width in zip(batch.columns[1:], self.widths, strict=True):
            ends = np.concatenate([[0], np.cumsum(self.actions[row] * width)])
            if not np.array_equal(column.offsets.to_numpy(), ends) or len(column.values) < ends[-1]:
                raise ValueError("its trajectories have other numbers of actions")
        return row


def write_part(path: Path, expected: ExpectedScores, rows: np.ndarray, scores: np.ndarray, *, seconds: float) -> None:
    """Write the scores of some trajectories as a part: an Arrow file of one record batch.

    Args:
        path: of the part.
        expected: the scores of the whole file.
        rows: `[n]`, numbers of the trajectories.
        scores: `[N, 2 + K]` float32, logit, log-partition and further logits of their N actions, one trajectory after
            another.
        seconds: wall time of computing them.
    """
    columns, at = [pa.array(rows, pa.int64())], 0
    for width in expected.widths:
        ends = np.concatenate([[0], np.cumsum(expected.actions[rows] * width)])
        flat = np.ascontiguousarray(scores[:, at : at + width]).reshape(-1)
        columns.append(pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat, pa.float32())))
        at += width
    batch = pa.record_batch(columns, schema=expected.schema())
    schema = expected.schema(seconds=seconds, digest=_digest([batch]))
    with atomic_path(path) as partial, partial.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(batch)


def read_part(path: Path, expected: ExpectedScores) -> tuple[np.ndarray, pa.RecordBatch]:
    """Return (row numbers of the trajectories, their record batch) of a part.

    Raises:
        UNREADABLE: the part is torn, changed, or of other scores.
    """
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    expected.check(reader)
    _verify(reader)
    batch = reader.get_batch(0)
    return expected.rows_of(batch), batch


def join_parts(path: Path, expected: ExpectedScores, folder: Path) -> None:
    """Write the whole file of reference scores from the parts in `folder`, with one in memory at a time."""
    parts = sorted(folder.glob("*.arrow"))
    found = [pa.ipc.open_file(pa.memory_map(str(part))).schema.metadata for part in parts]
    seconds = sum(float(metadata[SECONDS]) for metadata in found)
    schema = expected.schema(seconds=seconds, digest=_joined(metadata[DIGEST] for metadata in found))
    with atomic_path(path) as partial, partial.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for part in parts:
            writer.write_batch(read_part(part, expected)[1])


def _digest(batches: Iterable[pa.RecordBatch]) -> str:
    """Return a hash of the numbers in one record batch, or a hash of the hashes of several."""

    def of(batch: pa.RecordBatch) -> bytes:
        batch.validate(full=True)  # damaged offsets would crash the process below
        return hashlib.blake2b(batch.serialize(), digest_size=16).hexdigest().encode()

    return _joined(map(of, batches))


def _joined(digests: Iterable[bytes]) -> str:
    digests = list(digests)
    return digests[0].decode() if len(digests) == 1 else hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def _verify(reader: pa.RecordBatchFileReader) -> None:
    """Check every number of a file against the hash in its metadata.

    Raises:
        ValueError: the numbers are not those that were written.
    """
    found = _digest(reader.get_batch(k) for k in range(reader.num_record_batches))
    if reader.schema.metadata[DIGEST] != found.encode():
        raise ValueError("its numbers are not those that were written")


class MappedScores(Sequence[tuple[np.ndarray, ...]]):
    """A `MappedScores` reads each row's logits `[A]`, log-partitions `[A]` and anchor logits `[A, K]` from a file.

    The arrays are float32 views into the mapped file. Only the places of the lists are in memory, 16 bytes a row (24
    with an anchor). Writing to a view changes a private copy of that page, never the file.

    Args:
        path: of the file.
        expected: the scores that it has to hold.

    Attributes:
        seconds: wall time of computing the scores.

    Raises:
        InputError: the file is damaged or holds other scores.
    """

    def __init__(self, path: Path, expected: ExpectedScores) -> None:
        self.path, self.expected = path, expected
        try:
            with pa.OSFile(str(path)) as file:  # read, not mapped: pages that are read once need not stay in memory
                reader = pa.ipc.open_file(file)
                self.seconds = float(expected.check(reader)[SECONDS])
                _verify(reader)
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            buffer = pa.py_buffer(self._map)
            self._start = _places(pa.ipc.open_file(buffer), expected, buffer)
        except UNREADABLE as error:
            raise InputError(
                f"{path}: not the reference scores that it should hold ({error}); delete it, and they are computed anew"
            ) from error
        self._numbers = np.frombuffer(self._map, np.float32, count=len(self._map) // 4)

    def __len__(self) -> int:
        return len(self.expected.actions)

    def __getitem__(self, row: Any) -> Any:
        n, (logit, partition, *further) = int(self.expected.actions[row]), self._start[:, row].tolist()
        pair = self._numbers[logit : logit + n], self._numbers[partition : partition + n]
        if not further:
            return pair
        return *pair, self._numbers[further[0] : further[0] + n * self.expected.further].reshape(
            n, self.expected.further
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path of the file instead of its numbers."""
        return MappedScores, (self.path, self.expected)


def _places(reader: pa.RecordBatchFileReader, expected: ExpectedScores, buffer: pa.Buffer) -> np.ndarray:
    """Return where in the file each list begins, `[columns, rows]` int64, counted in float32 numbers.

    Raises:
        ValueError: a trajectory is missing or occurs twice.
    """
    start = np.full((len(expected.widths), len(expected.actions)), -1, np.int64)
    count = 0
    for k in range(reader.num_record_batches):
        batch = reader.get_batch(k)
        rows = expected.rows_of(batch)
        count += len(rows)
        for place, column in zip(start, batch.columns[1:], strict=True):
            values = column.values.buffers()[1]
            first = values.address - buffer.address if len(column.values) else 0
            if first % 4 or not 0 <= first <= buffer.size - 4 * len(column.values):
                raise ValueError("its lists are not in the file as they are")
            place[rows] = first // 4 + column.offsets.to_numpy()[:-1]
    if count != len(expected.actions) or (start < 0).any():
        raise ValueError(f"it holds {count} trajectories instead of {len(expected.actions)}")
    return start
