"""A return's quantile is the share of the reference's returns on the same prompt that are at or below it."""

from collections.abc import Mapping

import numpy as np

from shiqrun.batching.rows import Rows


def return_quantiles(rows: Rows, known: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the quantile of every row's return among the rewards of the reference, `[rows]` float32, no unit.

    Rewards are compared in float32, the precision of returns: 0.7 is not above the 0.7 of a sampled completion.

    Args:
        rows: with rewards.
        known: `[K]` rewards of the reference's completions, reward units, by prompt id.
    """
    level = {name: np.sort(np.asarray(rewards, np.float32)) for name, rewards in known.items()}
    below = [
        np.searchsorted(level[t.prompt_id], earned, side="right") / len(level[t.prompt_id])
        for t, earned in zip(rows.trajectories, rows.returns, strict=True)
    ]
    return np.array(below, np.float32)
