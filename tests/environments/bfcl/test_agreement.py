"""Our sessions against the package's own executor and checker, on the same calls."""

import random
import uuid
from importlib.resources import files

import numpy as np
import pytest
import yaml

from shiqrun.environments.bfcl.calls import Call, calls_in
from shiqrun.environments.bfcl.harness import Harness
from tests.environments.bfcl.dialogues import RULES, calculator, mistaken_messages, played, real, reference_messages

pytest.importorskip("bfcl_eval", reason="the functions of BFCL come with bfcl-eval")

SEED = 20250608


def mistaken(samples, each):
    """(sample, messages by turn) of so many dialogues of each sample."""
    for sample in samples:
        rng = np.random.default_rng([SEED, sample.index])
        for n in range(each):
            yield sample, mistaken_messages(sample, ("one", "turn")[n % 2], rng)


def calls_of(sample, turns):
    """What the gate admits of the messages: turn, step, call."""
    found = [[calls_in(text, sample.documented) for text in turn] for turn in turns]
    return [[[c.text for c in step if isinstance(c, Call)] for step in turn if step] for turn in found]


def plain(value):
    """A value that compares by what it holds: instances by their attributes, clocks left out."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "__dict__"):
        kept = {name: v for name, v in vars(value).items() if name not in ("parent", "_last_modified")}
        return (type(value).__name__, plain(kept))
    return value


def by_the_package(sample, turns):
    """(results, state) of the official executor after each step."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils

    name, seen = f"test_{uuid.uuid4().hex}", []
    for step in (step for turn in turns for step in turn):
        results, instances = multi_turn_utils.execute_multi_turn_func_call(
            step, sample.row["initial_config"], sample.classes, name, sample.id
        )
        seen.append((results, plain(instances)))
    for key in [key for key in vars(multi_turn_utils) if key.startswith(name)]:
        delattr(multi_turn_utils, key)
    return seen


def by_us(sample, turns):
    """The same of `backends.Session`."""
    from shiqrun.environments.bfcl.backends import Session

    session, seen = Session(sample.row), []
    for step in (step for turn in turns for step in turn):
        seen.append(([session.run(call) for call in step], plain(session.model)))
    return seen


def test_results_and_state_of_every_reference_answer_are_those_of_the_official_executor():
    calls = 0
    for sample in real():
        turns = [[[call] for call in turn] for turn in sample.truth]
        assert by_us(sample, turns) == by_the_package(sample, turns), sample.id
        calls += sum(map(len, turns))
    assert calls == 1160


def test_results_and_state_of_mistaken_dialogues_are_those_of_the_official_executor():
    tests, errors = [s for s in real() if s.is_test], 0
    for sample, messages in mistaken(tests, each=2):
        turns = calls_of(sample, messages)
        ours = by_us(sample, turns)
        assert ours == by_the_package(sample, turns), (sample.id, turns)
        errors += sum("rror" in result for results, _ in ours for result in results)
    assert errors > 20  # mistakes do come to errors, which must read alike


ODD = [
    "add()",
    "add(1, 2)",
    "add(a='1', b=2)",
    "add(a=1, b=2, c=3)",
    "power(base=9, exponent=100000)",
    "add(a=[1], b=[2])",
]
ODD += ["square_root(number=2, precision=0)", "square_root(2, 40)", "power(base=0, exponent=-1)", "add(a=1e999, b=2)"]
ODD += ["add(a={1: None}, b=())", "power(base='x', exponent=2)", "add(a=b'x', b=b'y')"]


@pytest.mark.parametrize("call", ODD)
def test_odd_arguments_give_the_same_answer(call):
    turns = [[[call]], [["add(a=0.1, b=0.2)"]]]
    ((found, _), _), ((expected, _), _) = by_us(calculator([]), turns), by_the_package(calculator([]), turns)
    assert found == expected


def test_a_function_name_inside_an_argument_is_left_alone():
    """Where the official executor writes its own variable's name into the text (no reference answer has one)."""
    sample = next(s for s in real() if "MessageAPI" not in s.classes and s.classes[0] == "GorillaFileSystem")
    turns = [[["mkdir(dir_name='a')", "touch(file_name='t')", "echo(content='use cd(a)', file_name='t')"]]]
    turns += [[["cat(file_name='t')"]]]
    assert by_us(sample, turns)[-1][0] == ['{"file_content": "use cd(a)"}']
    assert by_the_package(sample, turns)[-1][0] != ['{"file_content": "use cd(a)"}']


def compare(dialogues, harness):
    """(episodes, right ones): each is right if and only if the official checker says so."""
    verdicts = []
    for sample, messages in dialogues:
        episode = played(sample, messages, harness)
        assert episode.done
        assert not episode.ended
        assert episode.right == episode.official(), (sample.id, messages)
        verdicts.append(episode.right)
    return len(verdicts), sum(verdicts)


@pytest.mark.parametrize("together", ["one", "turn"])
def test_every_reference_answer_is_right_in_every_turn_and_for_the_official_checker(together):
    with Harness() as harness:
        for sample in real():
            episode = played(sample, reference_messages(sample, together), harness)
            assert episode.rewards() == [float(bool(calls)) for calls in sample.truth], sample.id
            assert episode.right
            assert episode.official(), sample.id
            assert not episode.refused


def test_mistaken_episodes_are_right_where_the_official_checker_says_so():
    with Harness() as harness:
        count, right = compare(mistaken([s for s in real() if s.is_test], each=5), harness)
    assert count == 200
    assert 20 < right < 120  # both verdicts occur often


@pytest.mark.slow
def test_all_samples_agree_with_the_official_checker_at_large():
    with Harness() as harness:
        assert compare(mistaken(real(), each=25), harness)[0] == 5000


def test_verdicts_up_to_every_turn_are_those_of_the_official_checker():
    """Its one verdict on the first n turns is the conjunction of our first n."""
    from shiqrun.environments.bfcl.backends import official

    compared, wrong = 0, 0
    with Harness() as harness:
        for sample, messages in mistaken([s for s in real() if s.is_test], each=1):
            episode, turns = played(sample, messages, harness), calls_of(sample, messages)
            for n in range(1, len(turns) + 1):
                expected = official(sample.row | {"ground_truth": sample.truth[:n]}, turns[:n])
                assert all(v.right or not v.counted for v in episode.verdicts[:n]) == expected, (sample.id, n)
                compared, wrong = compared + 1, wrong + (not expected)
    assert compared > 140
    assert 20 < wrong < compared - 20


def test_the_official_checker_leaves_nothing_behind():
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils

    from shiqrun.environments.bfcl.backends import official

    sample, before = real()[0], set(vars(multi_turn_utils))
    turns = [[calls] for calls in sample.truth]
    assert official(sample.row, turns)
    assert set(vars(multi_turn_utils)) == before
    with pytest.raises(KeyError):
        official({name: v for name, v in sample.row.items() if name != "initial_config"}, turns)
    with pytest.raises(TypeError):  # in the middle of its work
        official(sample.row | {"initial_config": {"GorillaFileSystem": 7}}, turns)
    assert set(vars(multi_turn_utils)) == before
    assert not official(sample.row, turns[:-1])


def test_a_session_leaves_nothing_behind():
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils

    from shiqrun.environments.bfcl.worker import answer_request

    sessions, before = {}, set(vars(multi_turn_utils))
    sample = real()[0]
    answer_request({"do": "open", "session": "a", "sample": sample.row}, sessions)
    answer_request({"do": "run", "session": "a", "call": sample.truth[0][0]}, sessions)
    answer_request({"do": "end_turn", "session": "a"}, sessions)
    assert [*sessions] == ["a"]
    answer_request({"do": "close", "session": "a"}, sessions)
    assert not sessions
    assert set(vars(multi_turn_utils)) == before


def test_the_configured_rules_are_those_of_the_official_runner():
    from bfcl_eval.constants.default_prompts import MAXIMUM_STEP_LIMIT

    configured = yaml.safe_load((files("shiqrun.conf") / "data/bfcl.yaml").read_text())
    assert configured["max_steps"] == RULES.max_steps == MAXIMUM_STEP_LIMIT
