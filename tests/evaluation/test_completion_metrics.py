"""Figures of samples against numbers worked out by hand.

Quantiles of Student's t at .975: 12.706205, 4.302653 with 1, 2 degrees of freedom.
"""

import math

import pytest

from shiqrun.evaluation.completion_metrics import completion_metrics, pass_at_k
from tests.support.completions import sample

T2 = 4.302653


def of(samples, reference=None, **options):
    return completion_metrics(samples, reference, **({"beta": None, "on_policy": True} | options))


def test_a_mean_has_the_interval_of_students_t_over_prompts():
    found = of([sample(name, reward=r) for name, r in (("a", 1.0), ("b", 2.0), ("c", 6.0))])
    assert found["reward"] == pytest.approx(3)
    assert found["reward_ci95"] == pytest.approx(T2 * math.sqrt(7) / math.sqrt(3), rel=1e-6)
    assert found["prompts"] == 3


def test_several_samples_of_a_prompt_count_once_in_the_mean_and_its_interval():
    rewards = {"a": (0.0, 2.0), "b": (2.0, 2.0), "c": (5.0, 7.0)}  # means 1, 2, 6
    found = of([sample(name, k, reward=r) for name, pair in rewards.items() for k, r in enumerate(pair)])
    assert found["reward"] == pytest.approx(3)
    assert found["reward_ci95"] == pytest.approx(T2 * math.sqrt(7) / math.sqrt(3), rel=1e-6)
    assert found["reward_std"] == pytest.approx(math.sqrt(6.4))  # of all six answers
    assert (found["reward_min"], found["reward_max"]) == (0, 7)
    assert found["prompts"] == 3


def test_the_regularised_return_is_reward_minus_beta_kl_with_an_interval_of_its_own():
    made = [sample(n, reward=r, kl=kl) for n, r, kl in (("a", 1.0, 2.0), ("b", 2.0, 0.0), ("c", 6.0, 4.0))]
    found = of(made, beta=0.5)
    assert found["kl"] == pytest.approx(2)
    assert found["kl_ci95"] == pytest.approx(T2 * 2 / math.sqrt(3), rel=1e-6)
    assert found["regularised_return"] == pytest.approx(2)  # of 0, 2, 4
    assert found["regularised_return_ci95"] == pytest.approx(T2 * 2 / math.sqrt(3), rel=1e-6)


def test_the_interval_of_one_prompt_is_not_known():
    found = of([sample("a", 0, reward=1.0), sample("a", 1, reward=3.0)])
    assert found["reward"] == 2
    assert math.isnan(found["reward_ci95"])


def test_a_mean_log_ratio_off_the_policys_distribution_is_called_no_kl():
    made = [sample("a", reward=1.0, kl=3.0), sample("b", reward=2.0, kl=1.0)]
    found = of(made, beta=0.5, on_policy=False)
    assert found["logratio_sum"] == 2
    assert found["logratio_sum_ci95"] == pytest.approx(12.706205 * math.sqrt(2) / math.sqrt(2), rel=1e-6)
    assert not {"kl", "kl_ci95", "regularised_return"} & set(found)


@pytest.mark.parametrize("missing", ["reward", "kl", "entropy"])
def test_what_was_not_measured_has_no_figure(missing):
    measured = {"reward": 1.0, "kl": 1.0, "entropy": 1.0} | {missing: None}
    found = of([sample("a", **measured), sample("b", **measured)], [sample("a"), sample("b")], beta=0.5)
    lost = {"reward": ("reward", "reward_std", "regularised_return", "win_rate")}
    lost |= {"kl": ("kl", "regularised_return"), "entropy": ("entropy",)}
    assert not set(lost[missing]) & set(found)
    assert not {"logratio_sum"} & set(found)


def test_a_figure_that_one_sample_lacks_is_left_out():
    assert not {"reward", "kl"} & set(of([sample("a", reward=1.0, kl=1.0), sample("b")]))


def test_a_win_counts_one_a_tie_half_a_loss_nothing():
    rewards = {"a": (1.0, 1.0), "b": (2.0, 3.0), "c": (6.0, 5.0)}
    ours = [sample(name, reward=r, text="ours") for name, (r, _) in rewards.items()]
    theirs = [sample(name, reward=r, text="theirs") for name, (_, r) in rewards.items()]
    found = of(ours, theirs)
    assert found["win_rate"] == pytest.approx(0.5)
    assert found["win_rate_ci95"] == pytest.approx(T2 * 0.5 / math.sqrt(3), rel=1e-6)
    assert found["reference_reward"] == pytest.approx(3)


def test_a_win_rate_compares_the_answers_of_one_prompt_pair_by_pair():
    won = (("a", 1.0, 0.0), ("a", 0.0, 1.0), ("b", -1.0, -2.0), ("b", -1.0, -1.0))
    ours = [sample(name, k % 2, reward=r, text="ours") for k, (name, r, _) in enumerate(won)]
    theirs = [sample(name, k % 2, reward=r, text="theirs") for k, (name, _, r) in enumerate(won)]
    found = of(ours, theirs)
    assert found["win_rate"] == pytest.approx((0.5 + 0.75) / 2)
    assert found["win_rate_ci95"] == pytest.approx(12.706205 * 0.125, rel=1e-6)  # of .5 and .75, sd .25/sqrt(2)


@pytest.mark.parametrize(("theirs", "text"), [(0.3000003, "other"), (0.31, "same")])
def test_what_only_rounding_tells_apart_is_a_tie(theirs, text):
    """Scores of one text in two batches, and equal texts, whatever was made of them."""
    ours = [sample("a", reward=0.3, text="same")]
    assert of(ours, [sample("a", reward=theirs, text=text)])["win_rate"] == 0.5


def test_entropy_is_the_mean_over_tokens():
    made = [sample("a", 0, length=1, entropy=1.0), sample("a", 1, length=1, entropy=3.0)]
    assert of([*made, sample("b", 0, length=2, entropy=6.0)])["entropy"] == pytest.approx(4)
    assert "entropy_ci95" not in of(made)


def test_lengths_count_the_stop_token_and_tell_ended_answers_from_those_cut_off():
    found = of([sample("a", length=3), sample("b", length=5), sample("c", length=10, ended=False)])
    names = ("mean_length", "min_length", "max_length", "mean_terminated_length", "clipped_ratio", "eos_rate")
    assert [found[f"completions/{n}"] for n in names] == pytest.approx([6, 3, 10, 4, 1 / 3, 2 / 3])


def test_where_nothing_ended_there_is_no_length_of_what_ended():
    found = of([sample("a", length=4, ended=False)])
    assert "completions/mean_terminated_length" not in found
    assert (found["completions/clipped_ratio"], found["completions/eos_rate"]) == (1, 0)


def test_distinct_n_is_the_share_of_different_n_grams_of_all_words():
    found = of([sample("a", text="a b a"), sample("b", text="b  a\nb"), sample("c", text="c"), sample("d", text="")])
    assert found["distinct_1"] == pytest.approx(3 / 7)
    assert found["distinct_2"] == pytest.approx(2 / 4)


def test_without_words_there_is_no_variety():
    assert not {"distinct_1", "distinct_2"} & set(of([sample("a", text="")]))
    assert "distinct_2" not in of([sample("a", text="one"), sample("b", text="two")])


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [(10, 3, 1, 0.3), (10, 3, 5, 0.916667), (20, 2, 10, 0.763158), (800, 5, 10, 0.061106), (5, 4, 2, 1), (5, 0, 5, 0)],
)
def test_pass_at_k_is_the_chance_that_one_of_k_without_replacement_is_right(n, correct, k, expected):
    assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=5e-7)


def test_pass_at_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="pass@11 needs at least 11 samples, met 10"):
        pass_at_k(10, 3, 11)


def test_pass_at_k_is_the_mean_over_prompts_for_every_k_that_the_samples_allow():
    made = [sample("a", k, reward=2.0 * (k < 3)) for k in range(10)] + [sample("b", k, reward=0.0) for k in range(10)]
    found = of(made, right=2.0)
    assert {k: v for k, v in found.items() if k.startswith("pass@") and "ci95" not in k} == pytest.approx(
        {"pass@1": 0.15, "pass@2": (1 - 21 / 45) / 2, "pass@5": 0.916667 / 2, "pass@10": 0.5}, abs=5e-7
    )
    assert not [k for k in of(made) if k.startswith(("pass@", "solutions"))], "only where answers are right or wrong"


def test_the_interval_of_pass_at_k_is_over_prompts_and_not_over_samples():
    """Of two prompts, one always right and one never, a resample has both, or one twice: 1/4, 1/2, 1/4."""
    made = [sample(name, k, reward=float(name == "a")) for name in "ab" for k in range(50)]
    found = of(made, right=1.0)
    for k in (1, 10, 50):
        assert [found[f"pass@{k}{end}"] for end in ("", "_ci95_low", "_ci95_high")] == [0.5, 0.0, 1.0]


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_where_all_answers_are_alike_the_interval_of_pass_at_k_is_a_point(reward):
    found = of([sample(name, k, reward=reward) for name in "abc" for k in range(2)], right=1.0)
    assert {v for k, v in found.items() if k.startswith("pass@")} == {reward}
    assert math.isnan(of([sample("a", reward=1.0)], right=1.0)["pass@1_ci95_low"])


def test_different_right_answers_are_counted_by_prompt_whatever_their_white_space():
    said = {"a": [("x | y", 1), ("x  |\ny ", 1), ("z", 1), ("w", 0)], "b": [("x | y", 0), ("q", 0)], "c": [("q", 1)]}
    made = [sample(n, k, text=t, reward=float(r)) for n, texts in said.items() for k, (t, r) in enumerate(texts)]
    found = of(made, right=1.0)
    assert found["solutions_distinct"] == pytest.approx(1)  # of 2, 0 and 1
    assert found["solutions_distinct_ci95"] == pytest.approx(T2 / math.sqrt(3), rel=1e-6)
