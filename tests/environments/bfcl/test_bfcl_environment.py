"""BFCL through the contract of environments: steps, rewards where they fall, truncation, and what is reported."""

import json

import pytest

pytest.importorskip("bfcl_eval", reason="the functions of BFCL come with bfcl-eval")

from shiqrun.environments.bfcl.environment import GROUND_TRUTH, BfclEnvironment
from shiqrun.environments.bfcl.rendering import DONE
from shiqrun.types import Example
from tests.environments.bfcl.dialogues import RULES, calculator, wrong_read
from tests.support.bfcl_episodes import Lines, spoken

SAMPLE = calculator(["add(a=1, b=2)"], [], ["add(a=3, b=4)"])


@pytest.fixture
def episode():
    with BfclEnvironment([SAMPLE], RULES) as world:
        yield world.begin(Example([], [], None, prompt_id=SAMPLE.id))


def test_a_turns_reward_falls_on_its_last_message_and_results_come_back(episode):
    assert [m["role"] for m in episode.opening] == ["system", "user"]
    calls = episode.step("[add(a=1, b=2)]")
    assert (calls.messages, calls.reward, calls.terminated) == (
        [{"role": "tool", "content": '{"result": 3}'}],
        0.0,
        False,
    )
    ends = episode.step(DONE)
    assert (ends.messages, ends.reward) == ([{"role": "user", "content": "question 1"}], 1.0)
    assert episode.step(DONE).reward == 0.0, "a turn without reference answer is not counted"
    last = episode.step(DONE)
    assert (last.messages, last.reward, last.terminated, last.truncated) == ([], 0.0, True, "")
    info = episode.info()
    assert json.loads(json.dumps(dict(info.record))) == info.record
    assert info.record["turn_rewards"] == [1, 0, 0]
    assert info.record["counted"] == [True, False, True]
    assert info.metrics["reward_per_turn"] == info.metrics["reward_per_turn/MathAPI"] == 0.5
    assert (info.metrics["official_score"], info.metrics["official_agreement"]) == (0, 1)
    assert info.part_metrics["reward_per_turn/train"] == 0.5, "sample 900 is no test sample"
    assert info.label == "MathAPI"
    assert [text for _, text in info.remarks] == ["reward 1", "not counted: no reference answer", "reward 0: no call"]


def test_truncation_pays_the_turn_that_was_begun_by_its_calls_so_far(episode):
    episode.step("[add(a=1, b=2)]")
    assert episode.truncate("no room") == 1.0
    assert episode.info().record["why"] == ["", "no room", "no room"]


def test_truncation_pays_nothing_for_a_turn_that_was_not_begun(episode):
    episode.step("[add(a=1, b=2)]")
    episode.step(DONE)
    assert episode.truncate("no room") == 0.0
    assert episode.info().record["turn_rewards"] == [1, 0, 0]


def test_the_reference_answer_earns_all(episode):
    steps = [episode.step(episode.scripted_message(GROUND_TRUTH)) for _ in range(5)]
    assert [step.reward for step in steps] == [0, 1, 0, 0, 1]
    assert steps[-1].terminated
    assert episode.info().metrics["official_score"] == 1


def test_the_row_of_an_episode_is_plain_and_complete():
    sample, turns = wrong_read()
    (played,) = spoken(Lines(lambda _: [text for turn in turns for text in turn]), [sample])
    row = played.row()
    assert json.loads(json.dumps(row)) == row
    assert row["id"] == sample.id
    assert len(row["rewards"]) == sum(m["role"] == "assistant" for m in row["messages"])
    assert row["turn_rewards"] == [1, 0, 1, 1]
    assert row["why"] == ["", "execution response mismatch", "", ""]
    assert (row["counted"], row["refused"], row["ended"]) == ([True] * 4, [], "")
