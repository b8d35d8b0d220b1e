"""Means and their 95 % intervals, and what two quantities together say."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # standard normal quantile at .975
STUDENT = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624)
"""Quantiles at .975 of Student's t with 1 to 7 degrees of freedom."""


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
