"""`data.pair_rewards` are the rewards of chosen and rejected completions in pairs without scores: checked, and told."""

import logging
from collections.abc import Sequence

from shiqrun.errors import InputError

log = logging.getLogger("shiqrun")
LARGEST_REWARD = 1e15
"""The largest size of a reward, whose square float32 holds."""


def check_pair_rewards(pair: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the rewards of (chosen, rejected) completions after checking them; None where none are set.

    Raises:
        InputError: not two finite numbers, or one whose square float32 does not hold.
    """
    if pair is None:
        return None
    if len(pair) != 2 or not all(-LARGEST_REWARD <= r <= LARGEST_REWARD for r in pair):  # an int may have any size
        raise InputError(
            f"data.pair_rewards={list(pair)}: expected two finite numbers of at most {LARGEST_REWARD:g} in size, "
            "[chosen, rejected], or null"
        )
    return float(pair[0]), float(pair[1])


def announce_pair_rewards(pair: tuple[float, float]) -> None:
    """Log the rewards that preference pairs without scores get from `data.pair_rewards`."""
    chosen, rejected = pair
    log.info(
        f"pairs without scores: chosen gets reward {chosen:g}, rejected {rejected:g} "
        "(data.pair_rewards; null leaves them without rewards)"
    )
