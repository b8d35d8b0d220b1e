"""`summary.json` is the last file that a run writes: a whole one says that the run is finished."""

import json
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError

SUMMARY = "summary.json"


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a run directory, empty where the run has not written one.

    Raises:
        InputError: the file is empty or no JSON object.
    """
    file = folder / SUMMARY
    if not file.is_file():
        return {}
    found = _parsed(file)
    if found is None:
        raise InputError(
            f"{file}: is damaged or empty; restore it, or go on with resume={folder}, which writes it again"
        )
    return found


def is_finished(folder: Path) -> bool:
    """Return whether a run directory holds a whole summary; a damaged one is no sign that the run has finished."""
    return bool(_parsed(folder / SUMMARY))


def _parsed(file: Path) -> dict[str, Any] | None:
    """Return the object in the file; None where there is none, or the file is no JSON object or an empty one."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found else None
