"""`check_sampled_files` compares the shards that a run has sampled with their list before they are read as data."""

import hashlib
from pathlib import Path

from shiqrun.errors import InputError
from shiqrun.util.jsonl import read_lines

INDEX, SHARDS = "INDEX", "experience-*.parquet"
"""The list of shards and their names, as `shiqrun.rollout.store.shards` writes them."""
ADVICE = "restore it from a copy, or take the file away and its line out of INDEX"


def check_sampled_files(folder: Path) -> None:
    """Check that the shards of a run's `experience/` are there as they were written; do nothing for other directories.

    Raises:
        InputError: a shard that INDEX lists is missing or has other bytes, or INDEX is damaged.
    """
    listing = folder / INDEX
    if not listing.is_file() or not any(folder.glob(SHARDS)):
        return
    advice = "restore it from a copy, or take it away: the shards are then read without being compared with it"
    for line in read_lines(listing, advice, {"name", "digest"}.issubset):
        file = folder / line.row["name"]
        if not file.is_file():
            raise InputError(f"{file}: is missing, which {INDEX} lists; {ADVICE}")
        if hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() != line.row["digest"]:
            raise InputError(f"{file}: has changed since it was written; {ADVICE}")
