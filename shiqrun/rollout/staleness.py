"""Staleness is how many optimiser steps old the weights were that sampled a trajectory, when it was trained on."""

from collections import Counter

import numpy as np

STALENESS_BINS = (0, 10, 20, 50, 100)
"""Optimiser steps at which the bins of the staleness histogram begin."""


def staleness_metrics(staleness: Counter[int]) -> dict[str, float]:
    """Return the mean, the maximum and the histogram of staleness, in optimiser steps.

    Args:
        staleness: number of trajectories by how many optimiser steps their weights were old.
    """
    if not staleness:
        return {}
    age, number = np.array(list(staleness)), np.array(list(staleness.values()))
    found = {"staleness_mean": float((age * number).sum() / number.sum()), "staleness_max": float(age.max())}
    for low, high in zip(STALENESS_BINS, (*STALENESS_BINS[1:], np.inf), strict=True):
        found[f"staleness_from_{low}"] = float(number[(age >= low) & (age < high)].sum() / number.sum())
    return found
