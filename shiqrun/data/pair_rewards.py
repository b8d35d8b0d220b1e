"""`data.pair_rewards` and `data.label_rewards` give rewards to pairs and to labels: they are checked, and told."""

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
    return _checked(pair, "data.pair_rewards", "[chosen, rejected]")


def check_label_rewards(pair: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the rewards of the labels (true, false) after checking them; None where none are set.

    Raises:
        InputError: as `check_pair_rewards`.
    """
    return _checked(pair, "data.label_rewards", "[true, false]")


def _checked(pair: Sequence[float] | None, key: str, names: str) -> tuple[float, float] | None:
    if pair is None:
        return None
    if len(pair) != 2 or not all(-LARGEST_REWARD <= r <= LARGEST_REWARD for r in pair):  # an int may have any size
        raise InputError(
            f"{key}={list(pair)}: expected two finite numbers of at most {LARGEST_REWARD:g} in size, {names}, or null"
        )
    return float(pair[0]), float(pair[1])


def announce_pair_rewards(pair: tuple[float, float]) -> None:
    """Log the rewards that preference pairs without scores get from `data.pair_rewards`."""
    chosen, rejected = pair
    log.info(
        f"pairs without scores: chosen gets reward {chosen:g}, rejected {rejected:g} "
        "(data.pair_rewards; null leaves them without rewards)"
    )


def announce_label_rewards(pair: tuple[float, float]) -> None:
    """Log the rewards that rows with a label get from `data.label_rewards`."""
    right, wrong = pair
    log.info(
        f"rows with a label: true gets reward {right:g}, false {wrong:g} (data.label_rewards; null leaves them without "
        "rewards)"
    )
