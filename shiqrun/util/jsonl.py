"""This module appends rows to JSON-lines files durably, and reads them without a line that a kill has torn.

A writer that is killed while it appends leaves at most one torn line, the last: it has no line feed at its end, or
holds no JSON. Any other broken line is damage, and reading stops with its place.

A sealed line ends with a hash of the bytes before it, under the key SEAL, so that a changed value is damage, too.
Older versions sealed nothing: lines without a seal are accepted as long as no sealed one stands before them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from shiqrun.errors import InputError
from shiqrun.util.atomic import sync

Row = dict[str, Any]
SEAL = "line_digest"
"""The last key of a sealed line: a BLAKE2b hash of the bytes before it, 16 hexadecimal digits."""
_MARK = f', "{SEAL}": "'.encode()


class Line(NamedTuple):
    """A `Line` is a whole line of a file: its number from 1, its JSON object, and the bytes of its start and end.

    The object is without the seal; `sealed` says whether it had one.
    """

    number: int
    row: Row
    start: int
    end: int
    sealed: bool = False


def read_lines(path: Path, advice: str, fits: Callable[[Row], bool] = lambda row: True) -> Iterator[Line]:
    """Yield every whole line of a JSON-lines file, without a torn last line.

    Args:
        path: of the file.
        advice: what to do about a broken line, for messages.
        fits: whether an object is a row of this file.

    Raises:
        InputError: a line that is not torn holds no JSON object, or one that does not fit; the message names file and
            line.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start, any_sealed = 0, False
        for number, text in enumerate(file, 1):
            try:
                row = _parsed(text)
            except ValueError:
                if not file.readline():
                    return
                row = None
            if not isinstance(row, dict) or not fits(row):
                raise InputError(f"{path}:{number}: a broken line; {advice}")
            sealed = row.pop(SEAL, None) is not None
            if not (is_as_written(text) if sealed else not any_sealed):
                raise InputError(
                    f"{path}:{number}: a changed line, its values are not those that were written; {advice}"
                )
            any_sealed |= sealed
            yield Line(number, row, start, start := start + len(text), sealed)


def append_lines(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    default: Callable[[Any], Any] | None = None,
    sealed: bool = False,
) -> list[int]:
    """Append a line for each row and force it to disk; after an error (a full disk) the file is as it was before.

    Args:
        path: of the file, which is created where it is missing; its last line must be whole.
        rows: JSON objects.
        default: makes a JSON value of an object that is none, as for `json.dumps`.
        sealed: whether each line gets a hash of its content.

    Returns:
        The byte at which each line starts.

    Raises:
        OSError: the disk does not take them.
    """
    new, texts = not path.exists(), [encode_line(row, default, sealed=sealed) for row in rows]
    size = 0 if new else path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(b"".join(texts))
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(path.parent)
    except OSError:
        truncate(path, size)
        raise
    return line_starts(texts, size)


def line_starts(lines: Sequence[bytes], first: int = 0) -> list[int]:
    """Return the byte offset at which each line starts, where the first one starts at `first`."""
    return [*accumulate(map(len, lines), initial=first)][:-1]


def truncate(path: Path, size: int) -> bool:
    """Cut a file to its first `size` bytes and force that to disk; return whether it was longer."""
    if not path.exists() or path.stat().st_size <= size:
        return False
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    return True


def encode_line(row: Mapping[str, Any], default: Callable[[Any], Any] | None = None, *, sealed: bool = False) -> bytes:
    """Return a row as a line of a JSON-lines file, in UTF-8; a sealed one, of at least one key, ends with its hash."""
    text = json.dumps(row, ensure_ascii=False, default=default).encode()
    if not sealed:
        return text + b"\n"
    body = text[:-1]
    return body + _MARK + _hash(body) + b'"}\n'


def parse_line(text: bytes, path: Path, advice: str) -> Row:
    """Return the JSON object of a whole line without its seal.

    Raises:
        InputError: the line was changed after it was written; the message names the file.
    """
    try:
        row: Row = json.loads(text)
    except ValueError:
        row = {SEAL: ""}
    if row.pop(SEAL, None) is not None and not is_as_written(text):
        raise InputError(f"{path}: a line was changed while it was read; {advice}")
    return row


def is_as_written(text: bytes) -> bool:
    """Return whether a sealed line has the bytes that were written."""
    body, _, hashed = text.rpartition(_MARK)
    return hashed == _hash(body) + b'"}\n'


def _hash(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8).hexdigest().encode()


def _parsed(text: bytes) -> Any:
    """Return the JSON value of a line.

    Raises:
        ValueError: it has no line feed at its end, or holds no JSON: it is torn or broken.
    """
    if not text.endswith(b"\n"):
        raise ValueError("no line feed")
    return json.loads(text)
