"""Means over seeds and their 95 % intervals."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # standard normal quantile at .975


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval by Student's t); the width of fewer than two values is NaN."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (count - 1))
    return mean, student(count - 1) * deviation / math.sqrt(count)


def student(degrees: int) -> float:
    """Quantile at .975 of Student's t by the Cornish-Fisher expansion; right to .001 from 8 degrees of freedom on."""
    z, n = Z95, degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
