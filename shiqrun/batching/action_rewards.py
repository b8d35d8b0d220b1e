"""`place_rewards` puts the rewards of a completion on its actions."""

from collections.abc import Sequence

import numpy as np

from shiqrun.errors import InputError


def place_rewards(
    reward: float | Sequence[float], turns: list[tuple[int, int]], positions: np.ndarray, source: str
) -> np.ndarray:
    """Return the reward of every action, `[A]`: one number falls on the last action, one per turn on its last."""
    values = [float(reward)] if isinstance(reward, int | float) else [float(r) for r in reward]
    if isinstance(reward, int | float):
        at = [turns[-1][1] - 1]
    elif len(values) == len(turns):
        at = [end - 1 for _, end in turns]
    else:
        at = [i for start, end in turns for i in range(start, end)]
    if len(values) != len(at):
        raise InputError(
            f"{source}: {len(values)} rewards for {len(turns)} assistant turns and {len(at)} action tokens; "
            "give one number, one a turn, or one a token"
        )
    placed = np.zeros(len(positions), np.float32)
    placed[np.searchsorted(positions, at)] = values
    return placed
