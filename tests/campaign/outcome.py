"""`outcome` reads what a command left behind, without what depends on the clock; `differences` compares two of them."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CLOCK = re.compile(
    r"second|time|started|finished|memory|_gb|eval_share|wall$|sha256$|sha256/metrics\.csv$|digest$|^bytes$|_computed|_from_cache|_cached|/weight_"
)
"""Keys and columns that differ between two equal runs: times, digests that cover times, work of one process."""
NO_OUTCOME = re.compile(r"\.log$|\.lock$|\.tmp$|\.hydra/(hydra|overrides)\.yaml$|/\.gitignore$|\.png$|\.svg$")
DATE = re.compile(r"\d{4}-\d\d-\d\d[T _]\d\d[:.-]\d\d([:.-]\d\d)?")


def outcome(folder: Path) -> dict[str, Any]:
    """What the files of a folder say, a value by file and key."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not NO_OUTCOME.search(str(f)))
    found: dict[str, Any] = {}
    for file in files:
        name = str(file.relative_to(folder))
        try:
            found |= flat(name, content(file))
        except Exception as error:  # a damaged file, whatever its reader makes of it
            found[name] = f"unreadable: {type(error).__name__}"
    return found


def content(file: Path) -> Any:
    """What a file says, by its format."""
    if file.suffix == ".json":
        return json.loads(file.read_text())
    if file.suffix == ".csv":
        return list(csv.DictReader(file.read_text().splitlines()))
    if file.suffix == ".jsonl" or file.name in ("INDEX", "LEASES"):
        return [json.loads(line) for line in file.read_text().splitlines()]
    if file.suffix == ".yaml":
        return yaml.safe_load(file.read_text())
    if file.suffix == ".parquet":
        from pyarrow.parquet import read_table

        return read_table(io.BytesIO(file.read_bytes())).to_pylist()
    if file.suffix == ".ckpt":
        import torch

        return torch.load(file, weights_only=False, map_location="cpu")
    if file.suffix in (".html", ".md"):
        lines = DATE.sub("", file.read_text()).splitlines()
        return [line for line in lines if file.suffix != ".md" or not CLOCK.search(line)]
    return file.read_bytes()


def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of nested lists and dicts; tensors are leaves, by their bytes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not CLOCK.search(str(key)):
                yield from flat(f"{prefix}:{key}", inner)
    elif isinstance(value, list | tuple):
        yield f"{prefix}:length", len(value)
        for number, inner in enumerate(value):
            yield from flat(f"{prefix}:{number}", inner)
    elif hasattr(value, "untyped_storage"):
        yield prefix, (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    else:
        yield prefix, repr(value)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Paths of the values that differ."""
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
