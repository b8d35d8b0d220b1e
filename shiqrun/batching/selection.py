"""This module drops trajectories that training has no use for: repeated ones, and those without a counterpart."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.stored_rows import StoredTrajectories

REPEATED = "the same as another completion of its prompt"


class DistinctRows:
    """`DistinctRows` keeps the first of every set of trajectories with equal tokens; other groups are other sets."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def kept(self, rows: Iterable[EncodedTrajectory], dropped: Counter[str]) -> list[EncodedTrajectory]:
        """Return the rows that are not as any before, in these rows and those of former calls; count the others."""
        kept = []
        for t in rows:
            name = hashlib.blake2b(t.group.encode(), digest_size=8).digest()
            tokens = hashlib.blake2b(name + t.input_ids.tobytes() + t.action_index.tobytes(), digest_size=16).digest()
            if tokens in self._seen:
                dropped[REPEATED] += 1
            else:
                self._seen.add(tokens)
                kept.append(t)
        return kept


def drop_repeated(rows: Iterable[EncodedTrajectory], dropped: Counter[str]) -> list[EncodedTrajectory]:
    """Return the first of every set of trajectories with equal tokens; see `DistinctRows`."""
    return DistinctRows().kept(rows, dropped)


def drop_uncompared(
    rows: Sequence[EncodedTrajectory], dropped: Counter[str], method: str | None
) -> Sequence[EncodedTrajectory]:
    """Return the trajectories whose group has another one to compare with, or all where no method compares them."""
    if method is None:
        return rows
    kept: Sequence[EncodedTrajectory]
    if isinstance(rows, StoredTrajectories):
        group = rows.numbers("group")
        picked = np.flatnonzero(np.bincount(group)[group] > 1) if len(group) else group
        kept = rows if len(picked) == len(rows) else rows.pick(picked)
    else:
        sizes = Counter(t.group for t in rows)
        kept = [t for t in rows if sizes[t.group] > 1]
    if len(kept) < len(rows):
        dropped[f"alone with its prompt (algo={method} compares completions of one prompt)"] += len(rows) - len(kept)
    return kept
