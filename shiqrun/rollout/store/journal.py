"""A journal is a small JSON-lines file held in memory, whose lines are on the disk before anyone relies on them."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.util.atomic import write_atomic
from shiqrun.util.jsonl import Row, append_lines, encode_line, line_starts, read_lines, truncate

log = logging.getLogger("shiqrun")


class Journal:
    """A journal holds the lines of a JSON-lines file; a torn last line, which a kill left, is cut off the file.

    Args:
        path: of the file; it need not exist.
        fits: whether a JSON object is a line of this journal.
        advice: what to do about a broken line, for messages.

    Attributes:
        rows: the lines, in order.

    Raises:
        InputError: a line before the last is broken, or the file cannot be read; the message names file and line.
    """

    def __init__(self, path: Path, fits: Callable[[Row], bool], advice: str) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._starts: list[int] = []  # the byte at which each line starts
        end = 0
        try:
            if path.exists():
                for line in read_lines(path, advice, fits):
                    self.rows.append(line.row)
                    self._starts.append(line.start)
                    end = line.end
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
        if truncate(path, end):
            log.warning("%s: cut off a torn last line", path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line to the journal, on disk when this returns; after an error (a full disk) the file is as it was."""
        self._starts += append_lines(self.path, [row], sealed=True)
        self.rows.append(dict(row))

    def drop_last(self) -> None:
        """Take the last line of the journal back."""
        self.rows.pop()
        truncate(self.path, self._starts.pop())

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all lines of the journal at once."""
        self.rows = [dict(row) for row in rows]
        lines = [encode_line(row, sealed=True) for row in self.rows]
        write_atomic(self.path, b"".join(lines))
        self._starts = line_starts(lines)
