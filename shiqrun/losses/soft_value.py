"""Q0, the soft value of a prompt, from rewards of the reference's own completions (SPO, arXiv 2503.05453, P3)."""

import math
from typing import NamedTuple

import numpy as np


class SoftValue(NamedTuple):
    """An estimate of Q0 and its standard error, both in reward units; the error of fewer than two samples is NaN."""

    value: float
    error: float


def soft_value(rewards: np.ndarray, beta: float) -> SoftValue:
    """Q0 = beta (logsumexp(r / beta) - log K) over K sampled rewards `[K]`.

    Biased low where what earns most is rare: with K samples nothing lies between the largest reward seen by none and
    by one of them. The error is the delta method's, beta sd(w) / (sqrt(K) mean(w)) with w = exp(r / beta).
    """
    scaled = np.asarray(rewards, np.float64) / beta
    top = scaled.max()
    weight = np.exp(scaled - top)
    count = len(weight)
    value = beta * (top + math.log(weight.mean()))
    error = beta * weight.std(ddof=1) / (math.sqrt(count) * weight.mean()) if count > 1 else math.nan
    return SoftValue(value, error)


def from_success_rate(rate: float, beta: float, *, right: float = 0.0, wrong: float = -1.0) -> float:
    """beta log(S exp(right / beta) + (1 - S) exp(wrong / beta)), reward units, for rewards of two values."""
    low, high = wrong / beta, right / beta
    top = max(low, high)
    return beta * (top + math.log(rate * math.exp(high - top) + (1 - rate) * math.exp(low - top)))
