import math

import pytest

from shiqrun.rewards.labels import Labelled, statistics
from shiqrun.types import Example
from tests.support.helpers import assistant, user


def labelled(split, *scores, alone=True):
    chats = [[assistant(str(n))] for n in range(len(scores))]
    return Labelled(split, Example([user("hello")], chats, None, "p", alone=alone), list(scores))


def test_accuracy_counts_ties_half_and_has_students_interval():
    found = statistics([labelled("train", 2.0, 1.0), labelled("train", 1.0, 2.0), labelled("train", 1.0, 1.0)])
    assert found["train/accuracy"] == 0.5
    assert found["train/accuracy_ci95"] == pytest.approx(4.302653 * 0.5 / math.sqrt(3))  # of 1, 0 and 0.5
    assert found["train/pairs"] == 3


def test_each_split_has_its_own_numbers_and_an_empty_one_only_counts():
    found = statistics([labelled("val", 3.0, 1.0), labelled("val", 5.0, alone=False)])
    expected = {"examples": 2, "completions": 3, "score_mean": 3.0, "score_min": 1.0, "score_max": 5.0, "accuracy": 1.0}
    assert {name: found[f"val/{name}"] for name in expected} == expected
    assert found["val/score_std"] == pytest.approx(math.sqrt(8 / 3))  # of 3, 1 and 5
    assert {k for k in found if k.startswith("train/")} == {"train/examples", "train/completions"}


def test_one_pair_has_no_interval_and_two_completions_that_are_no_pair_no_accuracy():
    assert "val/accuracy_ci95" not in statistics([labelled("val", 2.0, 1.0)])
    assert "val/accuracy" not in statistics([labelled("val", 2.0, 1.0, alone=False)])
