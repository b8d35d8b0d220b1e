"""Pivotal Token Search on one trajectory: which prefixes to estimate, and where the chance of success jumps.

An interval of tokens is divided while the chances at its ends differ by the gap or more (Phi-4, arXiv 2412.08905, Fig.
4; SPO, arXiv 2503.05453). What is estimated is told from outside, so that many searches can share a batch.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

Split = Literal["logp", "index"]
ROUNDING = 1e-9
"""0.7 - 0.5 is less than 0.2 in float64."""


class Bisection:
    """The search on a trajectory of T actions; position t stands behind its first t actions.

    Args:
        logp: `[T]`, nats, of the actions under the reference.
        gap: smallest difference of chances that is looked into.
        split: divide where the cumulated log-probability is halved, as in Phi-4, or in the middle by number.

    Attributes:
        rates: chance of success at every position visited so far.
    """

    def __init__(self, logp: np.ndarray, *, gap: float, split: Split) -> None:
        self.gap, self.split = gap, split
        self.spent = np.concatenate([[0.0], -np.cumsum(logp, dtype=np.float64)])
        self.rates: dict[int, float] = {}
        self._open = [(0, len(logp))]

    @property
    def wanted(self) -> list[int]:
        """Positions whose chances decide how to go on; none when the search is over."""
        return sorted({at for interval in self._open for at in interval} - self.rates.keys())

    def tell(self, rates: Mapping[int, float]) -> None:
        """The chances of success at some positions."""
        self.rates |= rates
        self._open = [part for interval in self._open for part in self._next(*interval)]

    def stop(self) -> None:
        """Ends the search where it stands."""
        self._open = []

    def _next(self, low: int, high: int) -> list[tuple[int, int]]:
        """What is left open of an interval: itself while an end is unknown, two parts, or nothing."""
        if low not in self.rates or high not in self.rates:
            return [(low, high)]
        if high - low <= 1 or not self._jumps(low, high):
            return []
        middle = self._middle(low, high)
        return [(low, middle), (middle, high)]

    def _jumps(self, low: int, high: int) -> bool:
        return abs(self.rates[high] - self.rates[low]) > self.gap - ROUNDING

    def _middle(self, low: int, high: int) -> int:
        if self.split == "index":
            return (low + high) // 2
        half = (self.spent[low] + self.spent[high]) / 2
        return low + 1 + int(np.abs(self.spent[low + 1 : high] - half).argmin())

    def pivots(self) -> list[int]:
        """Positions t such that the chance jumps by the gap or more from t to t + 1: action t (from 0) is pivotal."""
        return [t for t in sorted(self.rates) if t + 1 in self.rates and self._jumps(t, t + 1)]
