"""Q0 from sampled rewards: the formula, its bias and its standard error."""

import math

import numpy as np
import pytest

from shiqrun.losses.soft_value import from_success_rate, soft_value

PAPER = 1 / math.log(1e5)


@pytest.mark.parametrize(
    ("rate", "value"), [(0, -1), (1 / 800, -0.5799), (0.01, -0.3999), (0.1, -0.2), (0.5, -0.0602), (1, 0)]
)
def test_the_papers_values(rate, value):
    assert from_success_rate(rate, PAPER) == pytest.approx(value, abs=5e-5)
    rewards = np.where(np.arange(800) < 800 * rate, 0.0, -1.0)
    assert soft_value(rewards, PAPER).value == pytest.approx(value, abs=5e-5)


def test_a_constant_reward_is_its_own_value_and_a_shift_moves_the_value_alone():
    assert soft_value(np.full(7, -2.5), 0.3) == pytest.approx((-2.5, 0))
    rewards = np.random.default_rng(0).normal(size=50)
    plain, lifted = soft_value(rewards, 0.3), soft_value(rewards + 1000, 0.3)
    assert lifted.value == pytest.approx(plain.value + 1000)
    assert lifted.error == pytest.approx(plain.error)
    assert math.isnan(soft_value(rewards[:1], 0.3).error)


def test_large_betas_give_the_mean_and_small_ones_the_largest_reward():
    rewards = np.array([0.0, 1.0, 5.0])
    assert soft_value(rewards, 1e6).value == pytest.approx(2.0, abs=1e-4)
    assert soft_value(rewards, 1e-3).value == pytest.approx(5.0, abs=2e-3)


def test_the_standard_error_is_the_spread_of_estimates():
    rng = np.random.default_rng(1)
    beta = 0.5
    found = [soft_value(np.where(rng.random(400) < 0.3, 0.0, -1.0), beta) for _ in range(2000)]
    spread = np.std([f.value for f in found])
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.05)  # four standard errors of a spread
    assert np.mean([f.value for f in found]) == pytest.approx(from_success_rate(0.3, beta), abs=4 * spread / 2000**0.5)


def test_few_samples_of_a_rare_success_say_too_little():
    """What MATH says of success .01 at the paper's beta, by its exact binomial expectation."""

    def expected(count):
        chances = [math.comb(count, k) * 0.01**k * 0.99 ** (count - k) for k in range(count + 1)]
        return sum(p * from_success_rate(k / count, PAPER) for k, p in enumerate(chances))

    assert expected(10) == pytest.approx(-0.92, abs=0.005)
    assert expected(800) == pytest.approx(-0.407, abs=0.002)
