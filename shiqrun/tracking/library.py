"""A tracker's library may be missing, and a tracked run is named and found again by what its run directory says."""

import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError


def expect_library(tracker: str, module: str, package: str) -> None:
    """Raise InputError if a tracker's library is not installed.

    Args:
        tracker: the choice of `logger=`.
        module: what would be imported.
        package: what pip installs.
    """
    if find_spec(module) is None:
        raise InputError(f"logger={tracker}: {package} is not installed; pip install 'shiqrun[{tracker}]'")


def run_name(run_dir: Path) -> str:
    """Return the name of a run for trackers: the last two folders of its directory."""
    return "/".join(run_dir.resolve().parts[-2:])


def stored_id(folder: Path, given: str | None = None) -> str:
    """Return the id of a tracked run that a folder of the run directory keeps for a resume; the first call makes it.

    Args:
        folder: in the run directory.
        given: the id that the tracker itself has given to a new run; None makes one.
    """
    folder.mkdir(exist_ok=True)
    stored = folder / "run_id"
    if not stored.is_file():
        stored.write_text(given or uuid.uuid4().hex[:12])
    return stored.read_text()


def names_of(config: dict[str, Any]) -> list[str]:
    """Return the names of the method and of the data set, by which trackers find runs."""
    return [str(config[node]["name"]) for node in ("algo", "data") if node in config]
