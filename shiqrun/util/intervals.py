"""Means and their 95 % intervals, and how those are named."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Z95 = 1.959963984540054  # standard normal quantile at .975
STUDENT = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624)
"""Quantiles at .975 of Student's t with 1 to 7 degrees of freedom."""
HALF, LOW, HIGH = "_ci95", "_ci95_low", "_ci95_high"
"""What a figure's name ends in for half the width of its 95 % interval, or for its bounds where it is lopsided."""
RESAMPLES = 2000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval by Student's t); the width of fewer than two values is NaN."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (count - 1))
    return mean, student(count - 1) * deviation / math.sqrt(count)


def student(degrees: int) -> float:
    """Quantile at .975 of Student's t; from 8 degrees of freedom on by Cornish and Fisher's expansion, to .001."""
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    z, n = Z95, degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def bootstrap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds `[K]` of the 95 % interval of the mean of each column of `[P, K]`: percentiles of means of resampled rows.

    Stays between the smallest and the largest value, which `interval` does not; the resamples are always the same, and
    the same for all columns. NaN of fewer than two rows (Efron 1979).
    """
    count, columns = values.shape
    if count < 2:
        return np.full(columns, math.nan), np.full(columns, math.nan)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # [resamples, P], times
    low, high = np.percentile(drawn @ values / count, (2.5, 97.5), axis=0)
    return low, high


def is_bound(name: str) -> bool:
    """Whether a figure says how sure another is."""
    return name.endswith((HALF, LOW, HIGH))


def bounds(metrics: Mapping[str, float | None], name: str) -> tuple[float, float] | None:
    """The lopsided 95 % interval of a figure; None where it has none, or none that is known."""
    found = [metrics.get(name + end) for end in (LOW, HIGH)]
    low, high = (math.nan if value is None else value for value in found)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
