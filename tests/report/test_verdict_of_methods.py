"""The verdict on methods, on answers made by hand: who improved, who stands on the frontier, and no false winner."""

import numpy as np
import pytest

from shiqrun.report.answers import Answers
from shiqrun.report.verdict_of_methods import Curve, verdict_of
from shiqrun.util.intervals import STUDENT, crossed_interval, interval, two_sided_quantile

PROMPTS = [f"p{n}" for n in range(80)]
SEEDS = ["1", "2", "3"]


def answers(rng, reward, kl, *, seeds=SEEDS, prompt=None, spread=0.3, of_seed=0.02, reference=0.0):
    """What policies of that mean reward and KL earn; `prompt` is what prompts add for every method."""
    shape = len(seeds), len(PROMPTS)
    shared = np.zeros(len(PROMPTS)) if prompt is None else prompt
    earned = reward + shared + of_seed * rng.standard_normal((len(seeds), 1)) + spread * rng.standard_normal(shape)
    base = np.broadcast_to(reference + shared, shape)
    return Answers(list(seeds), PROMPTS, {"reward": earned, "kl": np.full(shape, kl), "reference": base})


def one(*points, chosen=0):
    return Curve(points, chosen)


def test_a_quantile_is_that_of_the_tables():
    for degrees, value in enumerate(STUDENT, 1):
        assert two_sided_quantile(degrees, 0.95) == pytest.approx(value, rel=1e-5)
    assert two_sided_quantile(5, 0.99) == pytest.approx(4.032143, rel=1e-5)
    assert two_sided_quantile(1e6, 0.95) == pytest.approx(1.959964, rel=1e-3)
    assert STUDENT[2] < two_sided_quantile(2.5, 0.95) < STUDENT[1]


def test_one_seed_has_the_interval_over_its_prompts_and_so_have_two():
    rng = np.random.default_rng(0)
    row = rng.standard_normal((1, 30))
    assert crossed_interval(row) == pytest.approx(interval(row[0].tolist()), rel=1e-4)
    both = np.concatenate([row, row + 5])
    assert crossed_interval(both)[1] == pytest.approx(interval(both.mean(axis=0).tolist())[1], rel=1e-4)


def test_an_interval_covers_the_mean_over_seeds_and_prompts():
    """Prompts and seeds vary alike: an interval over one of them alone would cover far less often."""
    rng = np.random.default_rng(1)
    covered = narrow = 0
    for _ in range(200):
        table = rng.standard_normal((4, 1)) + rng.standard_normal((1, 25)) * 2 + rng.standard_normal((4, 25))
        mean, half = crossed_interval(table)
        covered += abs(mean) < half
        narrow += abs(mean) < interval(table.mean(axis=0).tolist())[1]
    assert covered >= 180
    assert narrow < covered - 15


def test_a_method_far_below_another_at_its_kl_is_off_the_frontier():
    rng = np.random.default_rng(2)
    found = verdict_of({"good": one(answers(rng, 1.0, 2.0)), "bad": one(answers(rng, 0.3, 2.1))})
    assert found.standings["good"].under is None
    other, less, half = found.standings["bad"].under
    assert other == "good"
    assert less == pytest.approx(0.7, abs=0.15)
    assert 0 < half < less
    first, second = found.sentences()
    assert first.startswith("Improved on the reference, on 80 test prompts over 3 seeds, by reward: good (+")
    assert second.startswith(
        "good alone stands on the frontier: no other method surely earns more at its KL. Below it: b"
    )


def test_more_reward_at_more_kl_beats_nobody():
    rng = np.random.default_rng(3)
    far, near = one(answers(rng, 2.0, 9.0), answers(rng, 0.4, 1.0)), one(answers(rng, 0.5, 1.0))
    found = verdict_of({"far": far, "near": near})
    assert [s.under for s in found.standings.values()] == [None, None]


def test_between_two_points_of_a_curve_lies_a_mixture_of_its_policies():
    """From the reference (KL 0, reward 0) to KL 2, reward 2: at KL 1 a mixture earns 1."""
    rng = np.random.default_rng(4)
    found = verdict_of({"curve": one(answers(rng, 2.0, 2.0)), "low": one(answers(rng, 0.3, 1.0))})
    other, less, _ = found.standings["low"].under
    assert (other, round(less, 1)) == ("curve", 0.7)
    assert found.standings["curve"].under is None


def test_equal_methods_have_no_winner():
    """Five methods, the same policy but for chance: hardly ever does one stand above another."""
    wrong = 0
    for draw in range(40):
        rng = np.random.default_rng([5, draw])
        prompt = rng.standard_normal(len(PROMPTS))
        curves = {
            f"m{n}": one(*(answers(rng, 0.3 * kl, kl, prompt=prompt) for kl in (1.0, 2.0, 3.0)), chosen=2)
            for n in range(5)
        }
        wrong += any(s.under for s in verdict_of(curves).standings.values())
    assert wrong <= 6  # 5 % a method, five methods, of which intervals of few seeds are too wide


def test_methods_are_compared_on_the_same_prompts():
    """Prompts differ far more than methods do: only pairing finds the difference."""
    rng = np.random.default_rng(6)
    prompt = 10 * rng.standard_normal(len(PROMPTS))
    worse = answers(rng, 0.2, 2.0, prompt=prompt, spread=0.05)
    found = verdict_of({"more": one(answers(rng, 0.4, 2.0, prompt=prompt, spread=0.05)), "less": one(worse)})
    assert found.standings["less"].under is not None
    mean, half = found.standings["more"].gain
    assert (mean, half) == pytest.approx((0.4, 0.06), abs=0.06)


def test_one_seed_says_so_and_nothing_is_sure_without_a_difference():
    rng = np.random.default_rng(7)
    found = verdict_of({name: one(answers(rng, 0.0, 1.0, seeds=["1"])) for name in ("a", "b")})
    text = " ".join(found.sentences())
    assert "No sure difference: a" in text
    assert "No method surely stands above another: a and b are all on the frontier" in text
    assert "With one seed the intervals are over prompts alone" in text


def test_without_common_prompts_there_is_no_verdict():
    rng = np.random.default_rng(8)
    other = answers(rng, 0.0, 1.0)
    strange = Answers(other.seeds, [f"q{n}" for n in range(80)], other.values)
    assert verdict_of({"a": one(answers(rng, 0.0, 1.0)), "b": one(strange)}) is None
