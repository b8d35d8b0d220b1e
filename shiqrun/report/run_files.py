"""What runs leave on disk, read back: JSON, JSON lines, CSV and YAML, each error with its file and line.

A run that was killed may have torn the last line of a file; such a line is dropped. Anything else that is broken ends
the report, because a table with a hole in it that nobody sees is worse than none.
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

AGAIN = "restore the file, or move its run out of the way and report on the others"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: it holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no JSON ({error}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: a {type(found).__name__}, expected a JSON object; {AGAIN}")
    return found


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one after the other; nothing where there is no such file.

    Raises:
        InputError: a line but a torn last one holds no JSON object.
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
    """The rows of a CSV file with a header.

    Raises:
        InputError: there is no header, or a row but a torn last one has another number of columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); {AGAIN}") from None
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines:
        raise InputError(f"{path}: empty, expected a header; {AGAIN}")
    whole = lines if text.endswith("\n") or len(lines) < 2 else lines[:-1]
    header, rows = whole[0], [row for row in whole[1:] if row]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path} line {number}: {len(row)} columns, the header has {len(header)}; {AGAIN}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_config(path: Path) -> dict[str, Any]:
    """A run's config with dotted keys, lists as JSON text; empty where there is no such file.

    Raises:
        InputError: it is no YAML mapping.
    """
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: no YAML ({' '.join(str(error).split())}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: a {type(found).__name__}, expected a mapping; {AGAIN}")
    return dict(_flat(found, ""))


def _flat(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str) if isinstance(value, list) else value


def as_number(value: Any) -> float | None:
    """A finite float, or None for anything else: text, nothing, NaN, an infinity, True."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def as_yaml(text: str) -> Any:
    """The value that YAML reads in a word of a table: `0.1` is a number, `null` is None; other text as it is."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
