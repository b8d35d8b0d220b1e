import gzip
import json
from decimal import Decimal

import pytest

from shiqrun.errors import InputError
from shiqrun.rewards.math_answer import MathAnswer, last_number
from shiqrun.rewards.reward import Answered, Bounded
from tests.support.helpers import DATA, assistant, user


def item(text, answer, source="file:7"):
    return Answered([user("how many?")], [assistant(text)], answer=answer, source=source)


def score(text, answer, right=1.0, wrong=0.0):
    return MathAnswer(right=right, wrong=wrong).score([item(text, answer)])[0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("The answer is 18.", "18"),
        ("She makes 9 * 2 = $18 every day.", "18"),
        ("so $1,234.50 in all", "1234.5"),
        ("1,000,000 people", "1000000"),
        ("10,20", "20"),
        ("1, 2, 3", "3"),
        ("12.50%", "12.5"),
        ("16 km", "16"),
        ("it is -5", "-5"),
        ("it is \u22125", "-5"),
        ("it is -$5", "-5"),
        ("7-5", "5"),
        ("(3)-4", "4"),
        (".5 litres", "0.5"),
        ("0.10", "0.1"),
        ("**42**", "42"),
        (r"\boxed{42}", "42"),
        ("#### 72", "72"),
        ("x=-3", "-3"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "-", ".", "$", "five"])
def test_a_text_without_a_number(text):
    assert last_number(text) is None
    assert score(text, "#### 5") == 0


@pytest.mark.parametrize("answer", ["9*2=18\n#### 18", "#### 18", "18", 18, 18.0, "$18.00", "#### 1\n#### 18"])
@pytest.mark.parametrize(("text", "right"), [("18", True), ("$18.00 now", True), ("18 or 19", False), ("1.8", False)])
def test_an_answer_is_right_or_wrong(answer, text, right):
    assert score(text, answer) == right
    assert score(text, answer, right=0.0, wrong=-1.0) == (0 if right else -1)


@pytest.mark.parametrize("answer", [None, "", "unknown", "12 apples ####"])
def test_an_item_without_a_number_in_its_answer_names_the_row(answer):
    with pytest.raises(InputError, match=r"file:7: no number in its answer .* reward=math_answer needs a column"):
        score("18", answer)


def test_rewards_must_be_ordered():
    with pytest.raises(InputError, match=r"reward.right=0, reward.wrong=0"):
        MathAnswer(right=0.0, wrong=0.0)


def test_settings_and_contract():
    made = MathAnswer(right=0.0, wrong=-1.0)
    assert made.right == 0
    assert made.fingerprint() != MathAnswer(right=1.0, wrong=0.0).fingerprint()
    assert made.about() == {"name": "math_answer", "right": 0.0, "wrong": -1.0}
    made.refuse_seen([[user("how many?")]])
    assert not isinstance(made, Bounded)


@pytest.mark.parametrize(("file", "count"), [("gsm8k_train.jsonl.gz", 7473), ("gsm8k_test.jsonl.gz", 1319)])
def test_every_solution_of_gsm8k_is_right_and_the_next_ones_is_not(file, count):
    if not (DATA / file).exists():
        pytest.skip(f"SHIQRUN_TEST_DATA has no {file}")
    with gzip.open(DATA / file, "rt", encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    made = MathAnswer(right=1.0, wrong=0.0)
    assert made.score([item(answer, answer) for answer in answers]) == [1.0] * count
    numbers = [answer.rpartition("####")[2].strip() for answer in answers]
    turned = numbers[1:] + numbers[:1]
    plain = [float(a.replace(",", "") == b.replace(",", "")) for a, b in zip(numbers, turned, strict=True)]
    given = [item(f"so {number} of them", answer) for number, answer in zip(turned, answers, strict=True)]
    assert made.score(given) == plain
