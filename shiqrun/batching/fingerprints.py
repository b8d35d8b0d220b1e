"""Fingerprints are hashes of tokens, actions, rewards and groups: equal data have equal fingerprints, stored or not."""

from hashlib import blake2b
from typing import Any

import numpy as np

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows


def add_row(digest: Any, row: EncodedTrajectory) -> None:
    """Add the tokens, actions and rewards of a trajectory to the hash of its split."""
    for part in (row.input_ids, row.action_index, row.rewards):
        digest.update(b"|" if part is None else part.tobytes() + b",")


def add_groups(digest: Any, group: np.ndarray) -> None:
    """Add the group numbers of all trajectories of a split, `[rows]` int64, to its hash."""
    digest.update(group.tobytes())


def fingerprint(*splits: Rows) -> str:
    """Return a hash of every token, action, reward and group: equal data give equal batches."""
    digest = blake2b(digest_size=16)
    for rows in splits:
        for t in rows.trajectories:
            add_row(digest, t)
        add_groups(digest, rows.group)
    return digest.hexdigest()
