"""Strict readers parse the files that runs leave: JSON, JSON lines, CSV and YAML; errors name the file and line.

A run that was killed may have torn the last line of a file; such a line is dropped. Anything else that is broken ends
the report, because a reader would not see that a number is missing from a table.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from shiqrun.errors import InputError
from shiqrun.util.seal import ADVICE, is_changed

AGAIN = "restore the file, or move its run out of the way and report on the others"
"""The advice at the end of every error here."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: the file holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
            except ValueError as error:
                if not line.endswith("\n"):
                    return
                raise InputError(f"{path} line {number}: no JSON ({error}); {AGAIN}") from None
            if not isinstance(row, dict):
                raise InputError(f"{path} line {number}: a {type(row).__name__}, expected a JSON object; {AGAIN}")
            yield row


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file by the names in its header.

    Raises:
        InputError: the file has no header, or a row other than a torn last one has another number of columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); {AGAIN}") from None
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines:
        raise InputError(f"{path}: empty, expected a header; {AGAIN}")
    complete = lines if text.endswith("\n") or len(lines) < 2 else lines[:-1]
    header, rows = complete[0], [row for row in complete[1:] if row]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path} line {number}: {len(row)} columns, the header has {len(header)}; {AGAIN}")
    return [dict(zip(header, row, strict=True)) for row in rows]


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
    except (OSError, ValueError, yaml.YAMLError) as error:
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
