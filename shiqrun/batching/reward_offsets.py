"""A reward offset is a constant per prompt that is subtracted from every return before the loss sees it."""

from typing import Literal

import numpy as np

from shiqrun.batching.rows import Rows

Offset = Literal["none", "mean", "group_mean"] | float
"""Setting `algo.reward_offset`; a number is in reward units."""


def offset_center(train: Rows, how: Offset) -> float:
    """Return the constant that `reward_offsets` subtracts: the mean return of the training split, or a given number.

    Args:
        train: the training split.
        how: "mean", "group_mean" and "none" (both 0), or the number itself, reward units.
    """
    if isinstance(how, str):
        return float(train.returns.mean()) if how == "mean" else 0.0
    return how


def reward_offsets(rows: Rows, how: Offset, center: float) -> np.ndarray:
    """Return what is subtracted from the reward of each row's last action, `[rows]` float32, reward units.

    This is `center` for every row, or with "group_mean" the mean return of the row's group. The optimal policy does
    not change with a constant per prompt; what ShiQ learns from a finite data set does.
    """
    if how != "group_mean" or not len(rows):
        return np.full(len(rows), center, np.float32)
    sums = np.bincount(rows.group, rows.returns.astype(np.float64))
    return (sums / np.bincount(rows.group))[rows.group].astype(np.float32)
