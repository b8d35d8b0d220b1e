"""An append-only file of JSON lines: a line is on the disk as a whole before anyone is told, or it never was."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError

log = logging.getLogger("shiqrun")
Row = dict[str, Any]


def sync_directory(directory: Path) -> None:
    """The names of its files are on the disk when this returns."""
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_whole(path: Path, content: bytes) -> None:
    """A file of this content, on the disk when this returns; after a kill there is all of it under its name or none."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


class Journal:
    """The lines of a file; a last one that a kill has torn is cut off, and nothing before it is lost.

    Args:
        path: of the file; it need not be there.
        columns: sets of keys of which every line has one, all of it.
        advice: what to do about a broken line, for messages.

    Attributes:
        rows: the lines, in order.

    Raises:
        InputError: a line before the last is broken, or the file cannot be read; the message names file and line.
    """

    def __init__(self, path: Path, columns: Iterable[frozenset[str]], advice: str) -> None:
        self.path, self._columns, self._advice = path, tuple(columns), advice
        self.rows: list[Row] = []
        self._ends: list[int] = []
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
        for number, line in enumerate(lines, 1):
            row = _parsed(line)
            if row is None and number == len(lines):
                log.warning("%s: cut off a torn last line", path)
                self._truncate()
                return
            if not isinstance(row, dict) or not any(columns <= row.keys() for columns in self._columns):
                raise InputError(f"{path}:{number}: a broken line; {advice}")
            self._know(row, len(line))

    def _know(self, row: Row, size: int) -> None:
        self.rows.append(row)
        self._ends.append((self._ends[-1] if self._ends else 0) + size)

    def _truncate(self) -> None:
        """The file ends behind the last line that counts."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(self._ends[-1] if self._ends else 0)
                os.fsync(file.fileno())

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a line, on the disk when this returns; after an error (a full disk) the file is as it was."""
        line, new = _line(row), not self.path.exists()
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_directory(self.path.parent)
        except OSError:
            self._truncate()
            raise
        self._know(dict(row), len(line))

    def drop_last(self) -> None:
        """Takes the last line back."""
        self.rows.pop()
        self._ends.pop()
        self._truncate()

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Puts other lines in the place of all, at once."""
        lines = [(dict(row), _line(row)) for row in rows]
        write_whole(self.path, b"".join(line for _, line in lines))
        self.rows, self._ends = [], []
        for row, line in lines:
            self._know(row, len(line))


def _parsed(line: bytes) -> Any:
    """What a line says; None of a torn one."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
