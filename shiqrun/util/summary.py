"""`summary.json` is the last file that a run writes: a whole one says that the run is finished.

Its key `sha256` has the digest of its other values, so that a changed number is found. Earlier versions wrote none.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.util.atomic import write_atomic

SUMMARY = "summary.json"
DIGEST = "sha256"
CHANGED = f"has changed since the run wrote it; restore it, or remove its key {DIGEST} to keep an edit that is meant"
"""What is wrong with a summary whose digest does not fit, and what to do about it."""


def write_summary(folder: Path, values: dict[str, Any]) -> None:
    """Write the summary of a run directory, atomically, with its digest."""
    plain = json.loads(json.dumps(values, default=str))
    write_atomic(folder / SUMMARY, json.dumps({**plain, DIGEST: _digest(plain)}, indent=2) + "\n")


def without_digest(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values of a summary without their digest; None where it does not fit them."""
    rest = {key: value for key, value in values.items() if key != DIGEST}
    return rest if values.get(DIGEST) in (None, _digest(rest)) else None


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a run directory, empty where the run has not written one.

    Raises:
        InputError: the file is empty or no JSON object, or its values have changed.
    """
    file = folder / SUMMARY
    if not file.is_file():
        return {}
    found = _parsed(file)
    if found is None:
        raise InputError(
            f"{file}: is damaged or empty; restore it, or go on with resume={folder}, which writes it again"
        )
    values = without_digest(found)
    if values is None:
        raise InputError(f"{file}: {CHANGED}, or go on with resume={folder}, which writes it again")
    return values


def is_finished(folder: Path) -> bool:
    """Return whether a run directory holds a whole summary; a damaged one is no sign that the run has finished."""
    return bool(without_digest(_parsed(folder / SUMMARY) or {}))


def _parsed(file: Path) -> dict[str, Any] | None:
    """Return the object in the file; None where there is none, or the file is no JSON object or an empty one."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found else None


def _digest(values: dict[str, Any]) -> str:
    """Return the SHA-256 of values, whatever the white space and the order of their keys in the file."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
