"""A prompt's soft value Q0 = beta log E_ref[exp(R / beta)] is estimated from rewards of the reference's completions.

Cohen et al. 2025, arXiv 2503.05453, equation 3; docs/math.md, "Prompt value".
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class SoftValue(NamedTuple):
    """A `SoftValue` holds an estimate of Q0 and its standard error, in reward units; NaN for a single sample."""

    value: float
    error: float


def soft_value(rewards: npt.NDArray[Any], beta: float) -> SoftValue:
    """Estimate a prompt's soft value from K sampled rewards: Q0 = beta (logsumexp(r / beta) - log K).

    The estimate is biased low where what earns most is rare: K samples cannot tell a success rate of zero from one
    below 1 / K. The error is the delta method's, beta sd(w) / (sqrt(K) mean(w)) with w = exp(r / beta).

    Args:
        rewards: `[K]`, reward units.
        beta: KL temperature, reward units per nat.
    """
    scaled = np.asarray(rewards, np.float64) / beta
    top = scaled.max()
    weight = np.exp(scaled - top)
    count = len(weight)
    value = beta * (top + math.log(weight.mean()))
    error = beta * weight.std(ddof=1) / (math.sqrt(count) * weight.mean()) if count > 1 else math.nan
    return SoftValue(value, error)


def from_success_rate(rate: float, beta: float, *, right: float = 0.0, wrong: float = -1.0) -> float:
    """Return the soft value of a prompt with success rate S: beta log(S exp(right/beta) + (1 - S) exp(wrong/beta)).

    Args:
        rate: S, the share of the reference's completions that succeed.
        beta: KL temperature, reward units per nat.
        right: reward of a success, reward units.
        wrong: reward of a failure, reward units.
    """
    low, high = wrong / beta, right / beta
    top = max(low, high)
    return beta * (top + math.log(rate * math.exp(high - top) + (1 - rate) * math.exp(low - top)))
