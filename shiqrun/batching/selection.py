"""This module drops trajectories that training has no use for: repeated ones, and those without a counterpart."""

import hashlib
from collections import Counter

from shiqrun.batching.encode import EncodedTrajectory


def drop_repeated(rows: list[EncodedTrajectory], dropped: Counter[str]) -> list[EncodedTrajectory]:
    """Return the first of every set of trajectories with equal tokens; those of other groups do not count as equal."""
    first: dict[tuple[str, bytes], EncodedTrajectory] = {}
    for t in rows:
        tokens = hashlib.blake2b(t.input_ids.tobytes() + t.action_index.tobytes(), digest_size=16).digest()
        first.setdefault((t.group, tokens), t)
    if len(first) < len(rows):
        dropped["the same as another completion of its prompt"] += len(rows) - len(first)
    return list(first.values())


def drop_uncompared(
    rows: list[EncodedTrajectory], dropped: Counter[str], method: str | None
) -> list[EncodedTrajectory]:
    """Return the trajectories whose group has another one to compare with, or all where no method compares them."""
    if method is None:
        return rows
    sizes = Counter(t.group for t in rows)
    kept = [t for t in rows if sizes[t.group] > 1]
    if len(kept) < len(rows):
        dropped[f"alone with its prompt (algo={method} compares completions of one prompt)"] += len(rows) - len(kept)
    return kept
