"""This module computes 95 % confidence intervals of means, by Student's t or the bootstrap, and names them `_ci95`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Z95 = 1.959963984540054  # quantile at .975 of the standard normal distribution
STUDENT = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624)
"""Quantiles at .975 of Student's t with 1 to 7 degrees of freedom."""
HALF, LOW, HIGH = "_ci95", "_ci95_low", "_ci95_high"
"""Endings of a metric's name for half the width of its 95 % interval, or for the bounds of an asymmetric one."""
RESAMPLES = 2000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return (mean, half width of its 95 % confidence interval by Student's t); the width is NaN for a single value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (count - 1))
    return mean, student_quantile(count - 1) * deviation / math.sqrt(count)


def student_quantile(degrees: int) -> float:
    """Return the .975 quantile of Student's t distribution; above 7 degrees of freedom by Cornish-Fisher, to .001."""
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    z, n = Z95, degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def bootstrap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds `[K]` of the bootstrap 95 % confidence interval of each column's mean, `[P, K]` (Efron 1979).

    They are percentiles of the means of resampled rows, so they stay between the smallest and the largest value, which
    those of `interval` do not. The resamples are always the same, and the same for all columns. NaN of fewer than two
    rows.
    """
    count, columns = values.shape
    if count < 2:
        return np.full(columns, math.nan), np.full(columns, math.nan)
    drawn = np.random.default_rng(0).multinomial(
        count, np.full(count, 1 / count), RESAMPLES
    )  # [resamples, P], how often each row was drawn
    low, high = np.percentile(drawn @ values / count, (2.5, 97.5), axis=0)
    return low, high


def is_bound(name: str) -> bool:
    """Return whether a metric's name is that of a bound or half width of another metric's confidence interval."""
    return name.endswith((HALF, LOW, HIGH))


def bounds(metrics: Mapping[str, float | None], name: str) -> tuple[float, float] | None:
    """Return (low, high) of a metric's asymmetric 95 % confidence interval, or None where it has no finite bounds."""
    found = [metrics.get(name + end) for end in (LOW, HIGH)]
    low, high = (math.nan if value is None else value for value in found)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
