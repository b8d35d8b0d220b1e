from dataclasses import replace

import pytest

from shiqrun.environments.bfcl.corruptions import turn_messages
from shiqrun.environments.bfcl.filling import Filler, without_arguments
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.environments.bfcl.rendering import DONE
from tests.environments.bfcl.dialogues import RULES, played, real, with_truth

TRUTH = [["f(a=1)", "g(2)", "f(a=3)"], ["f(a=4)"], ["h(x='y')"]]
FILLED = replace(RULES, arguments="reference")


def test_a_name_stands_for_the_next_such_call_of_the_turn_then_for_the_first_of_all():
    filler = Filler(TRUTH)
    assert [filler.fill("f", 0) for _ in range(3)] == ["f(a=1)", "f(a=3)", "f(a=1)"]
    assert filler.fill("g", 0) == "g(2)"
    assert filler.fill("h", 0) == "h(x='y')"
    assert filler.fill("k", 0) == "k()"
    assert [filler.fill("f", 1) for _ in range(2)] == ["f(a=4)", "f(a=1)"]


def test_a_bare_call_has_no_arguments():
    assert [without_arguments(call) for call in TRUTH[0]] == ["f()", "g()", "f()"]


def test_bare_reference_answers_are_right_and_a_wrong_order_is_not():
    pytest.importorskip("bfcl_eval", reason="the functions of BFCL come with bfcl-eval")
    with Harness() as harness:
        for sample in real():
            turns = [turn_messages([without_arguments(call) for call in calls], "one") for calls in sample.truth]
            episode = played(sample, turns, harness, FILLED)
            assert episode.rewards() == [float(bool(calls)) for calls in sample.truth], sample.id
            assert episode.official()
        sample = with_truth(real()[0], [["mkdir(dir_name='a')", "cd(folder='a')", "touch(file_name='b')"]])
        wrong = played(sample, [["mkdir()", "touch()", "cd()", DONE]], harness, FILLED)
        assert wrong.rewards() == [0]
        assert not wrong.official()
