"""Pivotal Token Search bisects one trajectory to find the actions at which the chance of success jumps.

An interval of actions is divided while the chances at its ends differ by the gap or more (Phi-4, arXiv 2412.08905,
Fig. 4; SPO, arXiv 2503.05453). Whoever runs the search estimates the chances, so that many searches share a batch.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

Split = Literal["logp", "index"]
ROUNDING = 1e-9
"""Tolerance of comparing chances: 0.7 - 0.5 is less than 0.2 in float64."""


class Bisection:
    """A `Bisection` searches a trajectory of T actions for pivotal ones; position t lies behind its first t actions.

    Args:
        logp: `[T]`, nats, log-probabilities of the actions under the reference.
        gap: smallest difference of chances, 0 to 1, at which an interval is divided.
        split: "logp" divides where half of the interval's log-probability is spent, as in Phi-4; "index" in the middle.

    Attributes:
        rates: chance of success, 0 to 1, at every position visited so far.
    """

    def __init__(self, logp: np.ndarray, *, gap: float, split: Split) -> None:
        self.gap, self.split = gap, split
        self.spent = np.concatenate([[0.0], -np.cumsum(logp, dtype=np.float64)])
        self.rates: dict[int, float] = {}
        self._open = [(0, len(logp))]

    @property
    def wanted(self) -> list[int]:
        """Return the positions whose chances of success the search needs next; none when it is over."""
        return sorted({at for interval in self._open for at in interval} - self.rates.keys())

    def record(self, rates: Mapping[int, float]) -> None:
        """Record the chances of success at some positions, and divide the intervals that they decide."""
        self.rates |= rates
        self._open = [part for interval in self._open for part in self._next(*interval)]

    def stop(self) -> None:
        """End the search early; keep what was found so far."""
        self._open = []

    def _next(self, low: int, high: int) -> list[tuple[int, int]]:
        """Return the open intervals that replace an interval: itself while an end is unknown, two parts, or none."""
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
        """Return the pivotal actions, counted from 0, over which the chance of success jumps by the gap or more."""
        return [t for t in sorted(self.rates) if t + 1 in self.rates and self._jumps(t, t + 1)]
