"""Intervals by bootstrap: that they hold the truth as often as they say, and what they are where nothing varies."""

import math

import numpy as np
import pytest

from shiqrun.evaluation.completion_metrics import pass_at_k
from shiqrun.util.intervals import RESAMPLES, bootstrap, bounds, is_bound

SHAPE = (0.5, 1.5)
"""Of the beta distribution of a problem's success rate: many hard problems, some easy ones."""


def truth(k):
    """1 - E[(1 - p)^k], p ~ Beta(a, b): the product over i < k of (b + i) / (a + b + i), taken from 1."""
    a, b = SHAPE
    return 1 - math.prod((b + i) / (a + b + i) for i in range(k))


@pytest.mark.slow
def test_the_interval_of_pass_at_k_holds_the_truth_of_the_problems_19_times_in_20():
    """400 draws of 80 problems with 20 samples; five standard deviations of the count are .054."""
    rng, trials, ks = np.random.default_rng(1), 400, (1, 5)
    held, means = np.zeros(len(ks)), np.zeros(len(ks))
    for _ in range(trials):
        correct = rng.binomial(20, rng.beta(*SHAPE, size=80))
        rates = np.array([[pass_at_k(20, int(c), k) for k in ks] for c in correct])
        low, high = bootstrap(rates)
        true = np.array([truth(k) for k in ks])
        held += (low <= true) & (true <= high)
        means += rates.mean(axis=0) / trials
    assert held / trials == pytest.approx(0.95, abs=0.054)
    assert means == pytest.approx([truth(k) for k in ks], abs=5 * 0.5 / math.sqrt(80 * trials)), "unbiased"


def test_resampling_is_what_a_loop_does():
    """Each resample draws as many rows as there are, with replacement; the bounds are percentiles of their means."""
    values = np.random.default_rng(2).random((40, 2)) ** 3
    rng, means = np.random.default_rng(3), []
    for _ in range(5000):
        rows = [int(40 * rng.random()) for _ in range(40)]
        means.append([sum(values[row, k] for row in rows) / 40 for k in range(2)])
    expected = np.percentile(np.array(means), (2.5, 97.5), axis=0)
    width = expected[1] - expected[0]
    # a percentile of 2000 means is off by sqrt(.025 .975 / 2000) / density: some .03 widths of the interval
    for found, wanted in zip(bootstrap(values), expected, strict=True):
        assert (np.abs(found - wanted) < 0.1 * width).all()


def test_resamples_are_always_the_same_and_of_all_columns_at_once():
    values = np.random.default_rng(4).random((30, 3))
    whole = bootstrap(values)
    assert np.array_equal(whole, bootstrap(values))
    for k in range(3):
        assert np.ravel(bootstrap(values[:, [k]])) == pytest.approx(np.array(whole)[:, k])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_nothing_varies_both_bounds_are_the_value(value):
    low, high = bootstrap(np.full((7, 2), value))
    assert low.tolist() == high.tolist() == [value, value]


def test_of_one_row_there_is_no_interval():
    assert np.isnan(bootstrap(np.ones((1, 2)))).all()


def test_bounds_stay_within_the_values_where_a_symmetric_interval_would_not():
    low, high = bootstrap(np.array([[1.0]] + [[0.0]] * 19))
    assert low == 0
    assert 0.1 <= high <= 0.2  # two to four of twenty draws of a chance of 1/20
    assert RESAMPLES >= 1000


def test_what_a_name_says():
    assert [is_bound(f"reward{end}") for end in ("_ci95", "_ci95_low", "_ci95_high", "", "_ci95_over_seeds")] == [
        *(True, True, True),
        *(False, False),
    ]
    assert bounds({"x_ci95_low": 0.1, "x_ci95_high": 0.3}, "x") == (0.1, 0.3)
    for lacking in ({}, {"x_ci95_low": None, "x_ci95_high": None}, {"x_ci95_low": 0.1, "x_ci95_high": math.nan}):
        assert bounds(lacking, "x") is None
