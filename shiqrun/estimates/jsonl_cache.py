"""A `JsonlCache` keeps rows that took long to compute, under a header that says what they are valid for.

The header holds the fingerprints of the reference and the reward and the sampling settings. Rows stay on disk, because
hundreds of completions of each of thousands of prompts are more than a machine's memory.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.util.atomic import write_atomic
from shiqrun.util.jsonl import Line, append_lines, encode_line, parse_line, read_lines, truncate
from shiqrun.util.lock import lock_for_all_ranks

log = logging.getLogger("shiqrun")
FORMAT = 1
ADVICE = "take the row out, and it is computed again"


@dataclass(frozen=True)
class CacheKind:
    """A `CacheKind` says what the rows of a cache are, and which command computes them.

    Attributes:
        name: of the command; the header has the key `shiqrun_<name>`.
        what: the rows in words, for messages.
        column: a column that every row has.
        key: the column by which rows are found.
    """

    name: str
    what: str
    column: str
    key: str

    @property
    def mark(self) -> str:
        """Return the key of the header that holds the format's number."""
        return f"shiqrun_{self.name}"

    @property
    def advice(self) -> str:
        """Return the command that makes such a file, for messages."""
        return f"`shiqrun {self.name}` makes one, {self.name}.jsonl"


class JsonlCache:
    """A `JsonlCache` is a JSONL file of a header and one row per line; a last line torn by a kill is cut off.

    Only the byte at which each row starts is in memory.

    Args:
        path: of the file; it need not exist.
        kind: what its rows are.
        made_with: the header: fingerprints of reference and reward, and the sampling settings.

    Raises:
        InputError: the file has another header, or is no such file; the message names what differs.
    """

    def __init__(self, path: Path, kind: CacheKind, made_with: Mapping[str, Any]) -> None:
        self.path, self.kind, self.made_with = path, kind, dict(made_with)
        self._starts: dict[str, int] = {}
        if path.exists() and path.stat().st_size:
            self._open()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, encode_line(self.header, sealed=True))

    @property
    def header(self) -> dict[str, Any]:
        """Return the JSON object in the first line of the file."""
        return {self.kind.mark: FORMAT, **self.made_with}

    def _open(self) -> None:
        lines = read_rows(self.path, self.kind)
        header = next(lines)
        expect_made_with(self.path, header.row, self.made_with, self.kind)
        end = header.end
        for line in lines:
            self._remember(line.row, line.start)
            end = line.end
        truncate(self.path, end)

    def _remember(self, row: Mapping[str, Any], start: int) -> None:
        """Note at which byte of the file a row starts."""
        self._starts[row[self.kind.key]] = start

    def __contains__(self, key: object) -> bool:
        return key in self._starts

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and force them to disk; after an error (a full disk) the file is as it was before."""
        new = list(rows)
        for row, start in zip(new, append_lines(self.path, new, default=str, sealed=True), strict=True):
            self._remember(row, start)

    def rows(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the cached rows of these keys, in that order, read from disk.

        Raises:
            KeyError: the cache has no such row.
        """
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(self._starts[key])
                yield parse_line(file.readline(), self.path, ADVICE)


@contextmanager
def lock_cache(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock of a cache file inside the block, for all ranks; log what another job is `doing` with it for long.

    Raises:
        InputError: the cache's directory cannot be written, or its file system has no locks.
    """
    reason = f"another process {doing} with this reference and reward; waiting for it"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_for_all_ranks(path.with_name(f"{path.name}.lock"), reason))
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be locked ({error.strerror}); name another cache_dir") from error
        yield


def expect_made_with(path: Path, header: Mapping[str, Any], made_with: Mapping[str, Any], kind: CacheKind) -> None:
    """Check that a cache's header agrees with the settings that its rows are wanted for.

    Raises:
        InputError: naming each entry that differs.
    """
    differing = [key for key, now in made_with.items() if header.get(key) != now]
    if differing:
        told = "; ".join(f"{key} {header.get(key)} there, {made_with[key]} here" for key in differing)
        raise InputError(
            f"{path}: these {kind.what} were computed with other settings: {told}. They are valid with these alone; "
            f"compute new ones with `shiqrun {kind.name}`"
        )


def read_rows(path: Path, kind: CacheKind) -> Iterator[Line]:
    """Yield the header of a cache file, then its rows, without a torn last line.

    Raises:
        InputError: the file cannot be read, is no such file, or has a broken row that is not the last.
    """
    try:
        lines = read_lines(path, ADVICE, lambda row: kind.mark in row or kind.column in row)
        try:
            header = next(lines, None)
        except InputError:  # its first line is no header, whatever else it is
            header = None
        if header is None or header.row.get(kind.mark) != FORMAT:
            raise InputError(f"{path}: no file of {kind.what}; {kind.advice}")
        if not header.sealed:
            log.info(
                f"{path}: an older version of shiqrun wrote it without hashes, so that changed values are not found"
            )
        yield header
        yield from lines
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {kind.advice}") from error
