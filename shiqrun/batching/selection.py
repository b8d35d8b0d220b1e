"""Which encoded trajectories of a split are kept: those that others do not repeat, or that have others beside them."""

import hashlib
from collections import Counter

from shiqrun.batching.encode import EncodedTrajectory


def distinct(rows: list[EncodedTrajectory], dropped: Counter[str]) -> list[EncodedTrajectory]:
    """The first of every set of rows with equal tokens; rows that may not be compared are told apart."""
    first: dict[tuple[str, bytes], EncodedTrajectory] = {}
    for t in rows:
        tokens = hashlib.blake2b(t.input_ids.tobytes() + t.action_index.tobytes(), digest_size=16).digest()
        first.setdefault((t.group, tokens), t)
    if len(first) < len(rows):
        dropped["the same as another completion of its prompt"] += len(rows) - len(first)
    return list(first.values())


def compared(rows: list[EncodedTrajectory], dropped: Counter[str], method: str | None) -> list[EncodedTrajectory]:
    """The rows that share their prompt with another, or all where no method compares them."""
    if method is None:
        return rows
    sizes = Counter(t.group for t in rows)
    kept = [t for t in rows if sizes[t.group] > 1]
    if len(kept) < len(rows):
        dropped[f"alone with its prompt (algo={method} compares completions of one prompt)"] += len(rows) - len(kept)
    return kept
