"""A run's summary holds the SHA-256 of each file of the model that it saved, so that a change is found on loading."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.util.summary import SUMMARY, read_summary

PREFIX = "sha256/"
SAVED = ("policy", "reward_model", "adapter")
"""The directories in a run directory that hold a model, or the adapter of one."""
TABLES = ("metrics.csv", "samples.jsonl", "credit.jsonl")
"""Files that a report reads again."""
READ = (".json", ".jinja", ".py", ".safetensors", ".bin", ".model", ".txt")
"""The endings of the files that loading reads; a model card may be edited."""


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a saved model that loading reads, by keys as `sha256/policy/config.json`."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in READ and path.is_file())
    return {PREFIX + str(path.relative_to(folder.parent)): _digest(path) for path in files}


def table_digests(run_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of the tables that a finished run has written, by keys as `sha256/metrics.csv`."""
    return {PREFIX + name: _digest(run_dir / name) for name in TABLES if (run_dir / name).is_file()}


def _known_digests(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    return {key: value for key, value in summary.items() if key.startswith(f"{PREFIX}{folder.name}/")}


def has_checksums(folder: Path) -> bool:
    """Return whether the run's summary has checksums of a model's files; those of earlier versions have none."""
    place = folder.resolve()
    return bool(_known_digests(read_summary(place.parent), place))


def expected_fingerprint(path: str) -> str | None:
    """Return the fingerprint of the weights in a run's `policy/` that only the run's summary has, else None.

    Earlier versions wrote no checksums of files, but the fingerprint of the policy.
    """
    folder = Path(path).resolve()
    summary = read_summary(folder.parent) if folder.name == SAVED[0] else {}
    return None if _known_digests(summary, folder) else summary.get("fingerprint/policy")


def check_saved_files(path: str, option: str) -> None:
    """Compare the files of a model with the checksums that its run wrote down; do nothing for any other directory.

    Args:
        path: of the model; one inside a run directory has the summary beside it.
        option: the option that has the path, for messages.

    Raises:
        InputError: a file was changed, removed or added, or the summary is damaged.
    """
    folder = Path(path).resolve()
    if folder.name not in SAVED:
        return
    known = _known_digests(read_summary(folder.parent), folder)
    now = file_digests(folder) if known else known
    if now == known:
        return
    name = min(name for name in {*known, *now} if known.get(name) != now.get(name))
    what = "is missing" if name not in now else "was added" if name not in known else "has changed"
    raise InputError(
        f"{option}={path}: {folder.parent / name.removeprefix(PREFIX)} {what} since the run saved it ({SUMMARY} "
        "has other checksums); restore it, "
        "or copy the directory elsewhere to use it as it is"
    )


_known: dict[tuple[Path, int, int], str] = {}
"""Digests by file, size and time of its last change: tokenizer and weights are loaded one by one, and hashed once."""


def _digest(path: Path) -> str:
    found = path.stat()
    version = (path, found.st_size, found.st_mtime_ns)
    if version not in _known:
        with path.open("rb") as file:
            _known[version] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known[version]
