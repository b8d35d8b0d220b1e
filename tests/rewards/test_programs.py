import itertools

import pytest

from shiqrun.errors import InputError
from shiqrun.rewards.programs import Programs
from shiqrun.rewards.reward import Answered, Bounded
from tests.data.test_programs import programs, said
from tests.support.helpers import assistant, tool, user

ANSWER = {"base": 10, "tests": [{"input": [3, 1], "output": [4, 2]}, {"input": [9], "output": [0]}]}


def item(text, answer=ANSWER):
    return Answered([user("3 -> 4 ;")], [assistant(text)], answer=answer, source="file:7")


def scores(*texts, **options):
    return Programs(**({"right": 0.0, "wrong": -1.0} | options)).score([item(text) for text in texts])


def test_a_program_is_right_or_wrong_whatever_its_spelling():
    assert scores("add 1", " add  1\n", "add 4 | add 7", "reverse|add 1|reverse") == [0, 0, 0, 0]
    assert scores("add 2", "sort", "add 1 | sort", "add 1 | take 1") == [-1, -1, -1, -1]


def test_a_text_that_is_no_program_is_wrong():
    assert scores("", "4 2", "-> 4 2 ;", "add", "add 1 |", "add 1 add 1", "add 1 | exit ( 0 )") == [-1] * 7


def test_one_hidden_example_that_fails_is_enough():
    half = {"base": 10, "tests": [{"input": [3, 1], "output": [4, 2]}, {"input": [9], "output": [1]}]}
    assert Programs(right=1.0, wrong=0.0).score([item("add 1", half)]) == [0]


def test_the_base_is_the_problems():
    five = {"base": 5, "tests": [{"input": [4], "output": [0]}]}
    assert Programs(right=1.0, wrong=0.0).score([item("add 1", five), item("add 6", five)]) == [1, 1]


def test_both_rewards_are_settings():
    assert scores("add 1", "sort", right=1.0, wrong=0.0) == [1, 0]
    assert Programs(right=1.0, wrong=0.0).right == 1
    made = Programs(right=0.0, wrong=-1.0)
    assert made.about() == {"name": "programs", "right": 0.0, "wrong": -1.0}
    assert made.fingerprint() != Programs(right=1.0, wrong=-1.0).fingerprint()
    assert made.fingerprint() != Programs(right=0.0, wrong=-2.0).fingerprint()
    with pytest.raises(InputError, match="a right answer must get more"):
        Programs(right=0.0, wrong=0.0)


def test_the_last_message_is_the_answer_and_any_length_is_read():
    turns = [assistant("sort"), tool("no"), assistant("add 1")]
    made = Programs(right=1.0, wrong=0.0)
    assert made.score([Answered([user("3 -> 4 ;")], turns, answer=ANSWER)]) == [1]
    assert not isinstance(made, Bounded)
    made.refuse_seen([[user("3 -> 4 ;")]])


def test_it_agrees_with_the_rewards_of_the_data():
    source, graded = programs(), Programs(right=0.0, wrong=-1.0)
    for example in itertools.chain(source.load("train"), source.load("val")):
        items = [Answered(example.messages, c, example.answer, example.source) for c in example.completions]
        assert graded.score(items) == list(example.rewards), said(example)


def test_repeating_what_is_shown_earns_nothing():
    """A constant, the shown outputs, and the simplest programs: no answer does for many problems."""
    source, graded = programs(), Programs(right=1.0, wrong=0.0)
    examples = list(source.load("val"))
    for text in ("sort", "reverse", "take 1", "add 1", "reverse | sort", "drop 3 | drop 3"):
        items = [Answered(e.messages, [assistant(text)], e.answer, e.source) for e in examples]
        assert sum(graded.score(items)) == 0
    shown = [e.messages[0]["content"].split(";")[0].split("->")[1] for e in examples]
    items = [Answered(e.messages, [assistant(t)], e.answer, e.source) for e, t in zip(examples, shown, strict=True)]
    assert sum(graded.score(items)) == 0


@pytest.mark.parametrize(
    "answer",
    [
        *(None, "add 1", {"tests": []}, {"base": 10, "tests": []}, {"tests": ANSWER["tests"]}),
        *({"base": 10, "tests": [{"input": [1]}]}, {"base": 10, "tests": [{"input": 1, "output": [1]}]}),
    ],
)
def test_an_item_without_hidden_examples_names_the_row(answer):
    with pytest.raises(InputError, match=r"file:7: .*reward=programs needs `answer`"):
        Programs(right=1.0, wrong=0.0).score([item("add 1", answer)])
