"""This module computes 95 % confidence intervals of means, by Student's t or the bootstrap, and names them `_ci95`."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

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


def crossed_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return (mean, half width of its confidence interval) of a table whose rows and columns are both samples.

    The variance is the sum of those of the means of rows and of columns, which is never too small on average: what
    belongs to single cells is counted in both. Its degrees of freedom are Satterthwaite's. A side of one alone, or of
    rows fewer than three, is taken as given; NaN where both are.

    Args:
        values: `[S, P]`, of each seed and prompt.
        level: of confidence.
    """
    parts = [
        (float(np.var(means, ddof=1)) / len(means), len(means) - 1)
        for means, least in ((values.mean(axis=1), LEAST_ROWS), (values.mean(axis=0), 2))
        if len(means) >= least
    ]
    mean, variance = float(values.mean()), math.fsum(part for part, _ in parts)
    if not parts:
        return mean, math.nan
    if not variance:
        return mean, 0.0
    degrees = variance**2 / math.fsum(part**2 / free for part, free in parts)
    return mean, two_sided_quantile(degrees, level) * math.sqrt(variance)


LEAST_ROWS = 3
"""The number of seeds from which on an interval is over them too: two have one degree of freedom, and say nothing."""
GRID, MOST_DEGREES = 20001, 1e4


def two_sided_quantile(degrees: float, level: float) -> float:
    """Return the t with P(|T| <= t) = level of Student's t distribution with `degrees` degrees of freedom, at least 1.

    With t = sqrt(n) tan(x) the density of x is proportional to cos(x)^(n-1), which is summed on a grid.
    """
    return _quantile(round(min(max(degrees, 1.0), MOST_DEGREES), 2), level)


@lru_cache(maxsize=4096)
def _quantile(freedom: float, level: float) -> float:
    """Return `two_sided_quantile` of a number of degrees of freedom to two decimals, so that few are computed."""
    angle = np.linspace(0, math.pi / 2, GRID)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, mass / mass[-1], angle)))
