from dataclasses import replace

import pytest

from shiqrun.environments.bfcl.calls import LONGEST_MESSAGE
from shiqrun.environments.bfcl.dialogue import Dialogue
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.environments.bfcl.rendering import DONE
from tests.environments.bfcl.dialogues import (
    RULES,
    calculator,
    played,
    real,
    reference_messages,
    with_truth,
    wrong_read,
)

pytest.importorskip("bfcl_eval", reason="the functions of BFCL come with bfcl-eval")


@pytest.fixture(scope="module")
def harness():
    with Harness() as made:
        yield made


def under(harness, sample, turns, **rules):
    return played(sample, turns, harness, replace(RULES, **rules))


def test_a_dialogue_is_question_call_result_until_no_call(harness):
    sample = calculator(["add(a=1, b=2)", "add(a=3, b=4)"], ["add(a=5, b=6)"])
    episode = under(harness, sample, [["[add(a=1, b=2), add(a=3, b=4)]", "Thanks."], ["add(a=5, b=6)", DONE]])
    assert [(m["role"], m["content"]) for m in episode.messages] == [
        ("system", "add, power, square_root"),
        ("user", "question 0"),
        ("assistant", "[add(a=1, b=2), add(a=3, b=4)]"),
        ("tool", '{"result": 3}'),
        ("tool", '{"result": 7}'),
        ("assistant", "Thanks."),
        ("user", "question 1"),
        ("assistant", "add(a=5, b=6)"),
        ("tool", '{"result": 11}'),
        ("assistant", DONE),
    ]
    assert episode.prompt == 2
    assert episode.done
    assert episode.ended == ""
    assert episode.rewards() == [1, 1]
    assert episode.message_rewards() == [0, 1, 0, 1]  # a turn is paid at its last message
    assert episode.right
    assert episode.official()


def wrong_write():
    """Sample 0 whose first turn forgets to move the file."""
    sample = real()[0]
    turns = reference_messages(sample)
    assert turns[0][2].startswith("[mv(")
    del turns[0][2]
    return sample, turns


@pytest.mark.parametrize(
    ("made", "independent", "prefix"),
    [(wrong_read, [1, 0, 1, 1], [1, 0, 0, 0]), (wrong_write, [0, 0, 0, 0], [0, 0, 0, 0])],
)
def test_a_wrong_turn_costs_itself_or_all_that_follow(harness, made, independent, prefix):
    sample, turns = made()
    first = under(harness, sample, turns)
    second = under(harness, sample, turns, rewards="official_prefix")
    assert first.rewards() == independent
    assert second.rewards() == prefix
    assert [v.why for v in first.verdicts] == [v.why for v in second.verdicts]
    for episode in (first, second):
        ends = [sum(map(len, turns[: n + 1])) - 1 for n in range(4)]
        assert [episode.message_rewards()[n] for n in ends] == episode.rewards()
        assert sum(episode.message_rewards()) == sum(episode.rewards())
        assert not episode.right
        assert not episode.official()


@pytest.mark.parametrize("rewards", ["independent", "official_prefix"])
def test_a_turn_without_reference_answer_is_neither_paid_nor_counted(harness, rewards):
    sample = with_truth(real()[0], [["pwd()"], [], ["ls()"]])
    turns = [["pwd()", DONE], ["mkdir(dir_name='a')", "rm(file_name='a')", DONE], ["ls()", DONE]]
    episode = under(harness, sample, turns, rewards=rewards)
    assert episode.rewards() == [1, 0, 1]
    assert episode.counted_turns() == [True, False, True]
    assert episode.right
    assert episode.official()
    silent = under(harness, sample, [["pwd()", DONE], [DONE], ["ls()", DONE]], rewards=rewards)
    assert (silent.rewards(), silent.right, silent.official()) == ([1, 0, 1], True, True)


def test_as_many_steps_as_allowed_are_judged_as_officially(harness):
    sample = with_truth(real()[0], [["pwd()"], ["ls()"]])
    episode = under(harness, sample, [["pwd()"] * 20 + [DONE], ["ls()", DONE]])
    assert episode.ended == ""
    assert episode.right
    assert episode.official()


def test_one_step_more_ends_the_episode(harness):
    sample = with_truth(real()[0], [["ls()"], ["pwd()"], [], ["ls()"]])
    episode = under(harness, sample, [["ls()", DONE], ["pwd()"] * 4], max_steps=3)
    assert episode.ended == "too many steps"
    assert episode.done
    assert episode.rewards() == [1, 1, 0, 0]  # the turn in which it ends is judged by its calls
    assert episode.counted_turns() == [True, True, False, True]
    assert episode.message_rewards() == [0, 1, 0, 0, 0, 1]
    assert episode.messages[-1]["role"] == "tool"  # the last step has run
    assert not episode.right
    assert not episode.official()


def test_an_episode_that_is_given_up_keeps_what_it_has_earned(harness):
    sample = with_truth(real()[0], [["ls()"], ["pwd()"], []])
    episode = Dialogue(sample, harness, RULES)
    for text in ("ls()", DONE, "pwd()"):
        episode.say(text)
    assert not episode.done
    episode.give_up("no room")
    assert episode.done
    assert (episode.ended, episode.rewards(), episode.counted_turns()) == ("no room", [1, 1, 0], [True, True, False])
    assert [v.why for v in episode.verdicts] == ["", "", "no room"]
    assert episode.message_rewards() == [0, 1, 1]
    assert not episode.right
    assert not episode.official()


@pytest.mark.parametrize("said", [["ls()"], ["pwd()"], []])
def test_an_episode_given_up_in_its_last_turn_is_judged_as_the_official_runner_has_it(harness, said):
    """Forced to end in the last turn, it hands its calls to the checker like any other."""
    sample = with_truth(real()[0], [["pwd()"], ["ls()"]])
    episode = Dialogue(sample, harness, RULES)
    for text in ("pwd()", DONE, *said):
        episode.say(text)
    episode.give_up("no room")
    assert episode.rewards() == [1, float(said == ["ls()"])]
    assert episode.right == episode.official() == (said == ["ls()"])


def test_results_cut_short_change_no_verdict(harness):
    for sample, turns in [(real()[0], reference_messages(real()[0])), wrong_read()]:
        whole, cut = under(harness, sample, turns), under(harness, sample, turns, result_chars=1)
        assert cut.verdicts == whole.verdicts
        assert cut.official() == whole.official()
        results = [[m["content"] for m in e.messages if m["role"] == "tool"] for e in (whole, cut)]
        assert max(map(len, results[0])) > 50
        for long, short in zip(*results, strict=True):
            assert short == long if len(long) <= 1 else short == f"{long[0]}... ({len(long) - 1} more characters)"


def test_hostile_text_runs_nothing_and_is_answered(harness, tmp_path):
    there = tmp_path / "there"
    attack = f"__import__('pathlib').Path({str(there)!r}).touch()"
    sample = with_truth(real()[0], [["pwd()"], ["pwd()"]])
    hostile = [attack, f"[pwd(**{{'x': {attack}}}), ls(a={attack})]", f"ls(a='{'x' * LONGEST_MESSAGE}')"]
    episode = under(harness, sample, [[*hostile, DONE], ["[pwd(), rmtree()]", DONE]])
    assert not there.exists()
    assert len(episode.refused) == 5
    answers = [m["content"] for m in episode.messages if m["role"] == "tool"]
    assert len(answers) == 6
    assert [a.startswith("Error during execution: ") for a in answers] == [True] * 4 + [False, True]
    assert [v.why for v in episode.verdicts] == ["no call", ""]  # what is refused is no call
    assert episode.official() == episode.right


def test_a_call_that_a_limit_ends_is_counted_and_the_verdicts_agree():
    with Harness(0.5) as harness:
        sample = calculator(["add(a=1, b=2)"], ["add(a=3, b=4)"])
        turns = [["[power(base=9, exponent=100000000), add(a=1, b=2)]", DONE], ["add(a=3, b=4)", DONE]]
        episode = under(harness, sample, turns)
        assert episode.stopped_calls == 1
        assert episode.rewards() == [1, 1]
        assert episode.right
        assert episode.official()


def test_calls_that_are_long_together_are_still_judged_officially():
    with Harness(0.5) as harness:
        sample = calculator(["add(a=1, b=2)"])
        slow = ", ".join(["power(base=9, exponent=900000)"] * 4)  # each takes a third of what one call may
        episode = under(harness, sample, [[f"[{slow}, add(a=1, b=2)]", DONE]])
        assert episode.right
        assert episode.official()
