"""Sampled trajectories are appended to a directory as Parquet shards: `experience-000017.parquet`, listed in INDEX.

A shard is written as a whole (`util.atomic`) and then gets its line in INDEX; with that line its trajectories are
accepted. So what a kill leaves can be told from what was accepted. The directory is itself a data set of `data=jsonl`.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from shiqrun.errors import InputError
from shiqrun.rollout.store.journal import Journal
from shiqrun.rollout.store.parquet import from_parquet, to_parquet
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.util.atomic import remove_partials, sync, write_atomic
from shiqrun.util.lock import Lock, LockHeld

log = logging.getLogger("shiqrun")
INDEX, PREFIX, SUFFIX = "INDEX", "experience-", ".parquet"
PATIENCE_SECONDS = 2
"""How long the lock is waited for: a process that was just killed may take a moment to end."""


class Shard(NamedTuple):
    """A shard is a line of INDEX: a Parquet file, its rows, bytes, a hash of these, its first and last uid."""

    name: str
    rows: int
    bytes: int
    digest: str
    first: str
    last: str

    def fault(self, path: Path) -> str | None:
        """Return what is wrong with the shard's file, or None; reads all of it."""
        try:
            content = path.read_bytes()
        except OSError as error:
            return error.strerror or str(error)
        if len(content) != self.bytes:
            return f"{len(content)} bytes instead of {self.bytes}"
        return None if digest_of(content) == self.digest else "its bytes are not those that were written"


def digest_of(content: bytes) -> str:
    """Return a BLAKE2b hash of the bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class Shards:
    """A `Shards` object reads and appends the Parquet shards of a directory, for one process at a time.

    Args:
        directory: of the shards; it need not exist.

    Raises:
        InputError: another process writes there, or a shard before the last or INDEX is damaged; the message names it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(directory / ".lock")
            self._lock.acquire(PATIENCE_SECONDS)
        except LockHeld as held:
            raise InputError(
                f"{directory}: another process writes here ({held}); end it, or name another directory"
            ) from None
        except OSError as error:
            raise InputError(f"{directory}: cannot be written ({error.strerror}); name another directory") from error
        try:
            advice = "restore it from a copy; the shards are a data set without it, data=jsonl data.path=<directory>"
            self._index = Journal(directory / INDEX, frozenset(Shard._fields).issubset, advice)
            self.shards = [Shard(**{name: row[name] for name in Shard._fields}) for row in self._index.rows]
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock on the directory, so that another process may write."""
        self._lock.release()

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def _check(self) -> None:
        """Clear away what a killed writer has left, and check the bytes of every shard."""
        remove_partials(self.directory)
        for partial in self.directory.glob(".*.partial"):  # as earlier versions called them
            partial.unlink()
        for number, shard in enumerate(self.shards, 1):
            path = self.directory / shard.name
            fault = shard.fault(path)
            if fault is not None and number < len(self.shards):
                raise InputError(
                    f"{path}: damaged ({fault}); restore it from a copy, or take the file away and its line out of "
                    f"{INDEX}: its {shard.rows} trajectories are then lost"
                )
            if fault is not None:
                log.warning("%s: damaged (%s), %d rows dropped; kept as .damaged", path, fault, shard.rows)
                self._index.drop_last()
                self.shards.pop()
                if path.exists():
                    self._set_aside(path, ".damaged")
        self._drop_unnamed()

    def _drop_unnamed(self) -> None:
        """Set aside the shard, one at most, whose writer died before INDEX named it."""
        named = {shard.name for shard in self.shards}
        unnamed = [p for p in sorted(self.directory.glob(f"{PREFIX}*{SUFFIX}")) if p.name not in named]
        if len(unnamed) > 1:
            raise InputError(
                f"{self.directory}: {INDEX} does not name {len(unnamed)} shards, first {unnamed[0].name}; restore "
                f"{INDEX} from a copy, or move these shards to a directory of their own: data=jsonl reads them there"
            )
        for path in unnamed:
            log.warning("%s: its writing was not finished, %s rows dropped; kept as .unfinished", path, _rows_in(path))
            self._set_aside(path, ".unfinished")

    def _set_aside(self, path: Path, suffix: str) -> None:
        path.replace(path.with_name(path.name + suffix))
        sync(self.directory)

    def append(self, trajectories: Sequence[SampledTrajectory]) -> None:
        """Write the trajectories as one shard, on disk when this returns; without trajectories write none.

        Raises:
            InputError: a prompt that Parquet cannot hold.
            OSError: it cannot be written (a full disk); the directory is as it was.
        """
        if not trajectories:
            return
        content = to_parquet(trajectories)
        number = int(self.shards[-1].name[len(PREFIX) : -len(SUFFIX)]) + 1 if self.shards else 0
        name = f"{PREFIX}{number:06}{SUFFIX}"
        uids = trajectories[0].uid, trajectories[-1].uid
        shard = Shard(name, len(trajectories), len(content), digest_of(content), *uids)
        try:
            write_atomic(self.directory / name, content)
            self._index.append(shard._asdict())
        except OSError:
            (self.directory / name).unlink(missing_ok=True)
            raise
        self.shards.append(shard)

    def read(self, pick: Callable[[str], bool] = lambda uid: True) -> Iterator[SampledTrajectory]:
        """Yield the trajectories whose uids are picked, in the order of appending; one shard is in memory at a time."""
        for number, uids in enumerate(self.uids()):
            if any(map(pick, uids)):
                table = self._table(number)
                yield from (t for t in from_parquet(table) if pick(t.uid))

    def uids(self, start: int = 0) -> Iterator[list[str]]:
        """Yield the uids of each shard from number `start` on; reads no other column."""
        for number in range(start, len(self.shards)):
            yield self._table(number, ["uid"])["uid"].to_pylist()

    def _table(self, number: int, columns: list[str] | None = None) -> pa.Table:
        path = self.directory / self.shards[number].name
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                return file.read(columns)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path}: cannot be read ({error}); restore it from a copy") from error


def _rows_in(path: Path) -> Any:
    """Return how many rows a file of unknown state has, for messages."""
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException):
        return "unreadable"
