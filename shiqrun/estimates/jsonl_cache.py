"""Rows that took long to make: a JSONL file whose first line says what they are good with, appended row by row.

Rows stay on disk (hundreds of completions of each of thousands of prompts are more than a machine's memory).
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from shiqrun.errors import InputError
from shiqrun.util.atomic import replace

log = logging.getLogger("shiqrun")
FORMAT = 1
PATIENCE_SECONDS = 5


@dataclass(frozen=True)
class Kind:
    """What such a file holds.

    Attributes:
        name: of the command that makes it; its first line has the key `shiqrun_<name>`.
        what: in words.
        column: that every row has.
        key: the column by which rows are found, in the file that is appended to.
    """

    name: str
    what: str
    column: str
    key: str

    @property
    def mark(self) -> str:
        """The key of the first line."""
        return f"shiqrun_{self.name}"

    @property
    def advice(self) -> str:
        """How to get one."""
        return f"`shiqrun {self.name}` makes one, {self.name}.jsonl"


class KeptFile:
    """A header, then a row a line; a line that a kill has torn is cut off, and nothing before it is lost.

    Args:
        path: of the file; it need not be there.
        kind: what it holds.
        made_with: what equal rows need: fingerprints of reference and reward, and how was sampled.

    Raises:
        InputError: the file was made with something else, or is no such file; the message names what differs.
    """

    def __init__(self, path: Path, kind: Kind, made_with: Mapping[str, Any]) -> None:
        self.path, self.kind, self.made_with = path, kind, dict(made_with)
        self._starts: dict[str, int] = {}
        if path.exists() and path.stat().st_size:
            self._open()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, json.dumps(self.header) + "\n")

    @property
    def header(self) -> dict[str, Any]:
        """The first line."""
        return {self.kind.mark: FORMAT, **self.made_with}

    def _open(self) -> None:
        lines = read_lines(self.path, self.kind)
        header, _, whole = next(lines)
        expect_made_with(self.path, header, self.made_with, self.kind)
        for row, start, end in lines:
            self._know(row, start)
            whole = end
        with self.path.open("r+b") as file:
            file.truncate(whole)  # a line that a kill has torn

    def _know(self, row: Mapping[str, Any], start: int) -> None:
        self._starts[row[self.kind.key]] = start

    def __contains__(self, key: object) -> bool:
        return key in self._starts

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows, on disk when this returns."""
        with self.path.open("ab") as file:
            for row in rows:
                start = file.tell()
                file.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
                self._know(row, start)
            file.flush()
            os.fsync(file.fileno())

    def rows(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows of these keys, in that order.

        Raises:
            KeyError: one that is not there.
        """
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(self._starts[key])
                yield json.loads(file.readline())


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Alone with a file; says what another process is doing with it for long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        log.info("another process %s with this reference and reward; waiting for it", doing)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def expect_made_with(path: Path, header: Mapping[str, Any], made_with: Mapping[str, Any], kind: Kind) -> None:
    """Nothing, if a header agrees.

    Raises:
        InputError: naming each entry that differs.
    """
    differing = [key for key, now in made_with.items() if header.get(key) != now]
    if differing:
        told = "; ".join(f"{key} {header.get(key)} there, {made_with[key]} here" for key in differing)
        raise InputError(
            f"{path}: these {kind.what} were made otherwise: {told}. They are only good with what they were made with; "
            f"make new ones with `shiqrun {kind.name}`"
        )


class Line(NamedTuple):
    """A whole line: what it says, and the bytes where it starts and ends."""

    row: dict[str, Any]
    start: int
    end: int


def read_lines(path: Path, kind: Kind) -> Iterator[Line]:
    """The header of a file, then its rows; a last line that a kill has torn is left out.

    Raises:
        InputError: it cannot be read, is no such file, or has a row that is broken in the middle.
    """
    try:
        with path.open("rb") as file:
            header = _parsed(file.readline())
            if header is None or header.get(kind.mark) != FORMAT:
                raise InputError(f"{path}: no file of {kind.what}; {kind.advice}")
            yield Line(header, 0, file.tell())
            start = file.tell()
            for number, line in enumerate(file, 2):
                row = _parsed(line)
                if row is None or kind.column not in row:
                    if file.readline():
                        raise InputError(f"{path}:{number}: a broken row; take it out, it is made again")
                    return
                yield Line(row, start, start := start + len(line))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {kind.advice}") from error


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
