"""Strict readers parse the files that runs leave: JSON, JSON lines, CSV and YAML; errors name the file and line.

A kill or a power cut may have torn the last line of a file, or left zero bytes behind it; they are dropped, and that is
said. Anything else that is broken ends the report: a reader would not see that a number is missing from a table.
"""

import csv
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from shiqrun.errors import InputError
from shiqrun.util.seal import ADVICE, is_changed

log = logging.getLogger("shiqrun")
AGAIN = "restore the file, or move its run out of the way and report on the others"
"""The advice at the end of every error here."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: the file holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a {type(value).__name__}, expected a JSON object; {AGAIN}")
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; none where there is no such file.

    Raises:
        InputError: a line other than a torn last one holds no JSON object.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith("\n") or not (line.strip("\0\n") or file.readline()):
                    _tell_torn(path)
                    return
                raise InputError(f"{path} line {number}: no JSON ({error}); {AGAIN}") from None
            if not isinstance(row, dict):
                raise InputError(f"{path} line {number}: a {type(row).__name__}, expected a JSON object; {AGAIN}")
            yield row


def read_table(path: Path, column: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file by the names in its header, one of which must be `column`.

    Raises:
        InputError: the file is no table, or a row other than a torn last one has another number of columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); {AGAIN}") from None
    whole = text.rstrip("\0")
    try:
        lines = list(csv.reader(io.StringIO(whole, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: no table ({error}); {AGAIN}") from None
    if not lines or column not in lines[0]:
        raise InputError(f"{path}: no header with a column {column}; {AGAIN}")
    torn = not whole.endswith("\n") and len(lines) > 1
    if torn or whole != text:
        _tell_torn(path)
    header, rows = lines[0], [row for row in (lines[1:-1] if torn else lines[1:]) if row]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path} line {number}: {len(row)} columns, the header has {len(header)}; {AGAIN}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _tell_torn(path: Path) -> None:
    log.warning(
        f"{path}: its end is torn, as a kill or a power cut leaves it; what follows the last whole line is left out"
    )


def read_typed_keys(path: Path) -> frozenset[str] | None:
    """Return the keys that a run's command line set, as Hydra recorded them; None where its record cannot be read."""
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(words, list | None):
        return None
    return frozenset(str(word).lstrip("+~").partition("=")[0] for word in words or ())


def read_config(path: Path) -> dict[str, Any]:
    """Return a run's config by dotted keys, with lists as JSON text; empty where there is no such file.

    Raises:
        InputError: the file is no YAML mapping, or has changed since the run wrote it.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        changed, value = is_changed(text), yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: no YAML ({' '.join(str(error).split())}); {AGAIN}") from None
    if changed:
        raise InputError(f"{path}: has changed since the run wrote it; {ADVICE}")
    if not isinstance(value, dict):
        raise InputError(f"{path}: a {type(value).__name__}, expected a mapping; {AGAIN}")
    return dict(_dotted_items(value, ""))


def _dotted_items(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _dotted_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str) if isinstance(value, list) else value


def as_number(value: Any) -> float | None:
    """Return a finite float; None for anything else, such as text, NaN, an infinity or a boolean."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def as_yaml(text: str) -> Any:
    """Return the value that YAML reads in a text (`0.1` is a number, `null` is None), else the text itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
