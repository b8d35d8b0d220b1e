import pytest

from shiqrun.errors import InputError
from shiqrun.rewards.exact_match import ExactMatch
from shiqrun.rewards.reward import Answered, Bounded
from tests.support.helpers import assistant, tool, user


def item(text, answer, source="file:7"):
    return Answered([user("2 + 2?")], [assistant(text)], answer=answer, source=source)


def test_an_answer_is_right_or_wrong():
    given = [item("4", "4"), item("5", "4"), item(" 4\n", "4"), item("4", 4), item("four", "Four"), item("", "4")]
    assert ExactMatch(ignore_case=False).score(given) == [1, 0, 1, 1, 0, 0]
    assert ExactMatch(ignore_case=True).score(given) == [1, 0, 1, 1, 1, 0]


def test_the_last_message_is_compared():
    turns = [assistant("3"), tool("no"), assistant("4")]
    assert ExactMatch(ignore_case=False).score([Answered([user("2 + 2?")], turns, answer="4")]) == [1]


def test_an_item_without_an_answer_names_the_row():
    with pytest.raises(InputError, match=r"file:7: no answer .* column `answer`"):
        ExactMatch(ignore_case=False).score([item("4", None)])


def test_its_setting_is_its_fingerprint():
    assert ExactMatch(ignore_case=True).fingerprint() != ExactMatch(ignore_case=False).fingerprint()
    assert ExactMatch(ignore_case=True).about() == {"name": "exact_match", "right": 1, "wrong": 0, "ignore_case": True}


def test_it_was_trained_on_nothing_and_reads_any_length():
    made = ExactMatch(ignore_case=False)
    made.refuse_seen([[user("2 + 2?")]])
    assert not isinstance(made, Bounded)
    assert made.right == 1
