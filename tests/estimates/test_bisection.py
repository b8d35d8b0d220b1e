"""Pivotal Token Search by itself: what it visits and what it finds, against Phi-4's recursion and by hand."""

import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from shiqrun.estimates.bisection import Bisection

EVEN = np.full(16, -1.0)


def searched(chance, logp, *, gap=0.2, split="logp"):
    """The search with chances that are known exactly."""
    one = Bisection(np.asarray(logp), gap=gap, split=split)
    while one.wanted:
        one.record({at: chance(at) for at in one.wanted})
    return one


def subdivide(chance, cost, low, high, gap, visited):
    """The recursion of Phi-4's report, Fig. 4, on positions."""
    visited |= {low, high}
    if high - low <= 1 or abs(chance(high) - chance(low)) < gap:
        return [(low, high)]
    half = (cost[low] + cost[high]) / 2
    middle = min(range(low + 1, high), key=lambda at: abs(cost[at] - half))
    return subdivide(chance, cost, low, middle, gap, visited) + subdivide(chance, cost, middle, high, gap, visited)


@pytest.mark.parametrize("seed", range(30))
def test_it_visits_and_finds_what_the_recursion_does(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 40))
    jumps = rng.normal(0, 0.15, length + 1) * (rng.random(length + 1) < 0.3)
    chances = np.clip(0.5 + np.cumsum(jumps), 0, 1)
    logp = -rng.exponential(1.0, length)
    visited, cost = set(), [0.0, *np.cumsum(-logp)]
    parts = subdivide(lambda at: chances[at], cost, 0, length, 0.2, visited)
    expected = [low for low, high in parts if high - low == 1 and abs(chances[high] - chances[low]) >= 0.2]
    one = searched(lambda at: chances[at], logp)
    assert set(one.rates) == visited
    assert one.pivots() == expected


@pytest.mark.parametrize("split", ["logp", "index"])
@pytest.mark.parametrize("place", range(16))
def test_a_single_jump_is_found_wherever_it_is(place, split):
    one = searched(lambda at: 0.9 if at > place else 0.3, EVEN, split=split)
    assert one.pivots() == [place]
    assert len(one.rates) <= 2 + math.log2(16)  # both ends and a middle a round: nothing beside the jump


def test_nothing_is_asked_inside_an_interval_whose_ends_agree():
    one = searched(lambda at: 0.4 + 0.01 * at, EVEN)
    assert sorted(one.rates) == [0, 16]
    assert one.pivots() == []


def test_the_middle_halves_the_log_probability_not_the_number_of_tokens():
    logp = [-0.1, -0.1, -0.1, -6.0, -0.1, -0.1]
    first = Bisection(np.array(logp), gap=0.2, split="logp")
    first.record({0: 0.0, 6: 1.0})
    assert first.wanted == [3]  # behind three tokens .3 nats are spent, behind four 6.3, and half is 3.25
    by_number = Bisection(np.array([-6.0, *[-0.1] * 5]), gap=0.2, split="logp")
    by_number.record({0: 0.0, 6: 1.0})
    assert by_number.wanted == [1]
    other = Bisection(np.array([-6.0, *[-0.1] * 5]), gap=0.2, split="index")
    other.record({0: 0.0, 6: 1.0})
    assert other.wanted == [3]


def test_a_difference_that_rounding_makes_smaller_than_the_gap_counts():
    assert 0.7 - 0.5 < 0.2
    assert searched(lambda at: 0.7 if at > 8 else 0.5, EVEN).pivots() == [8]
    assert searched(lambda at: 0.69 if at > 8 else 0.5, EVEN).pivots() == []


def test_a_trajectory_of_one_action_needs_its_two_ends_alone():
    one = searched(lambda at: float(at), [-1.0])
    assert sorted(one.rates) == [0, 1]
    assert one.pivots() == [0]


def test_a_search_that_is_stopped_wants_nothing_more():
    one = Bisection(EVEN, gap=0.2, split="index")
    one.record({0: 0.0, 16: 1.0})
    one.stop()
    assert one.wanted == []


def test_with_ten_rollouts_half_of_all_unchanged_positions_look_pivotal():
    """Why found tokens are looked at again: p = .5 on both sides, and a difference of .2 has chance one half."""
    chance = {k: Fraction(comb(10, k), 2**10) for k in range(11)}
    exact = sum(chance[a] * chance[b] for a in chance for b in chance if abs(a - b) >= 2)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(2000):
        one = Bisection(np.array([-1.0]), gap=0.2, split="logp")
        one.record({at: rng.binomial(10, 0.5) / 10 for at in (0, 1)})
        found += len(one.pivots())
    assert float(exact) == pytest.approx(0.5034, abs=1e-4)
    assert found / 2000 == pytest.approx(float(exact), abs=4 * math.sqrt(0.25 / 2000))
