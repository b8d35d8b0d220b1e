import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "s"}


@pytest.fixture
def source(tmp_path):
    """A Jsonl of the given rows."""

    def make(*rows, pair_rewards=(1, -1)):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Jsonl(path=str(file), val_path=None, pair_rewards=pair_rewards and list(pair_rewards))

    return make


def only(source):
    (example,) = source.load("train")
    return example


def test_strings_become_one_user_and_one_assistant_message(source):
    example = only(source({"prompt": "p", "completion": "c", "reward": 2, "answer": {"x": 1}, "prompt_id": 7}))
    assert example.messages == [user("p")]
    assert example.completions == [[assistant("c")]]
    assert example.rewards == [2.0]
    assert (example.answer, example.prompt_id) == ({"x": 1}, "7")
    assert example.source.endswith("rows.jsonl:1")


def test_chat_lists_pass_unchanged_and_repeated_prompts_are_cut(source):
    tail = [assistant("a"), {"role": "tool", "content": "t"}, assistant("b")]
    for completion in (tail, [SYSTEM, user("p"), *tail]):
        example = only(source({"prompt": [SYSTEM, user("p")], "completion": completion, "rewards": [0.5, 1]}))
        assert example.messages == [SYSTEM, user("p")]
        assert example.completions == [tail]
        assert example.rewards == [[0.5, 1.0]]


def test_a_list_longer_than_the_turns_is_passed_on_as_one_reward_per_token(source):
    assert only(source({"prompt": "p", "completion": "c", "rewards": [1, 2, 3]})).rewards == [[1.0, 2.0, 3.0]]


def test_several_completions_share_one_example(source):
    example = only(source({"prompt": "p", "completions": ["a", [assistant("b")]], "rewards": [1, [0.25]]}))
    assert example.completions == [[assistant("a")], [assistant("b")]]
    assert example.rewards == [1.0, [0.25]]


def test_a_chats_prompt_ends_before_its_first_assistant_turn(source):
    chat = [SYSTEM, user("p"), assistant("a"), user("q"), assistant("b")]
    example = only(source({"messages": chat, "rewards": [1, -1]}))
    assert example.messages == chat[:2]
    assert example.completions == [chat[2:]]
    assert example.rewards == [[1.0, -1.0]]


PAIRS = {
    "strings": ({"prompt": "p", "chosen": "a", "rejected": "b"}, [user("p")]),
    "completions": ({"prompt": "p", "chosen": [assistant("a")], "rejected": [assistant("b")]}, [user("p")]),
    "whole chats": (
        {"prompt": "p", "chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]},
        [user("p")],
    ),
    "whole chats with a system message": (
        {"prompt": "p", "chosen": [SYSTEM, user("p"), assistant("a")], "rejected": [SYSTEM, user("p"), assistant("b")]},
        [SYSTEM, user("p")],
    ),
    "no prompt column": (
        {
            "chosen": [user("p"), assistant("x"), user("q"), assistant("a")],
            "rejected": [user("p"), assistant("x"), user("q"), assistant("b")],
        },
        [user("p"), assistant("x"), user("q")],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_share_their_prompt(source, name):
    row, prompt = PAIRS[name]
    example = only(source(row))
    assert example.messages == prompt
    assert example.completions == [[assistant("a")], [assistant("b")]]
    assert example.rewards == [1.0, -1.0]


def test_equal_chats_keep_their_last_turn(source):
    chat = [user("p"), assistant("x"), user("q"), assistant("a")]
    example = only(source({"chosen": chat, "rejected": chat}))
    assert example.messages == chat[:3]
    assert example.completions == [chat[3:], chat[3:]]


def test_chats_that_part_at_a_user_turn_are_cut_before_the_answer_that_led_there(source):
    start = [user("p"), assistant("x")]
    example = only(source({"chosen": [*start, user("q")], "rejected": [*start, user("r"), assistant("b")]}))
    assert example.messages == [user("p")]
    assert example.completions == [[assistant("x"), user("q")], [assistant("x"), user("r"), assistant("b")]]


def test_scores_win_over_pair_rewards(source):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 8.5, "score_rejected": 3}
    assert only(source(row)).rewards == [8.5, 3.0]


def test_null_pair_rewards_leave_pairs_without_rewards(source):
    assert only(source({"prompt": "p", "chosen": "a", "rejected": "b"}, pair_rewards=None)).rewards is None


def test_pair_rewards_are_announced_once(source, caplog):
    pairs = source(*[{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2, pair_rewards=(0.5, 0))
    with caplog.at_level(logging.INFO, logger="shiqrun"):
        assert len([*pairs.load("train"), *pairs.load("train")]) == 4
    assert caplog.text.count("chosen gets reward 0.5, rejected 0 ") == 1


def test_rows_without_any_reward_have_none(source):
    example = only(source({"prompt": "p", "completion": "c", "reward": None}))
    assert example.rewards is None


def test_prompts_are_named_by_their_messages(source):
    rows = [{"prompt": p, "completion": c, "reward": 0} for p, c in (("p", "a"), ("p", "b"), ("q", "a"))]
    rows.append({"messages": [user("p"), assistant("z")], "reward": 0})
    ids = [e.prompt_id for e in source(*rows).load("train")]
    assert ids[0] == ids[1] == ids[3] != ids[2]
    # blake2b, 8 bytes, of '[{"content": "p", "role": "user"}]' by b2sum: it must not change between versions.
    assert ids[0] == "0d7cd9717443c209"


@pytest.mark.parametrize(
    ("row", "left", "reason"),
    [
        ({"prompt": "p", "completion": " \n", "reward": 1}, [], "empty completion"),
        ({"prompt": "p", "completion": [], "reward": 1}, [], "no actions"),
        ({"prompt": "p", "completions": ["a", ""], "rewards": [1, 2]}, [[1.0]], "empty completion"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, [], "empty completion"),
        ({"messages": [user("p")], "reward": 1}, [], "no actions"),
        ({"messages": [assistant("a")], "reward": 1}, [], "no prompt"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, [], "no prompt"),
    ],
)
def test_what_cannot_be_learned_from_is_dropped_and_counted(source, row, left, reason):
    data = source(row)
    for _ in range(2):  # the counts are those of the last reading
        assert [e.rewards for e in data.load("train")] == left
        assert data.dropped == {reason: 1}


def test_a_call_of_a_tool_without_text_is_an_action(source):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    example = only(source({"prompt": "p", "completion": [call], "reward": 1}))
    named = {"type": "function", "function": {"name": "f"}}
    assert example.completions == [[{**call, "content": "", "tool_calls": [named]}]]


OK = {"prompt": "p", "completion": "c", "reward": 1}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "response": "c"}, "missing column completion, completions, .* has prompt, response"),
        ({"completion": "c", "prompt": None}, r"missing column prompt; the row has completion, prompt \(null\)"),
        ({**PAIR, "rejected": None}, "missing column rejected"),
        ({"rejected": "b"}, "missing column chosen"),
        ({"chosen": "\n\nHuman: x", "rejected": "y"}, "missing column prompt .*data=hh"),
        ({**OK, "reward": float("nan")}, "column 'reward' is nan; expected a finite number"),
        ({**OK, "reward": float("-inf")}, "column 'reward' is -inf"),
        ({**OK, "reward": 10**400}, "column 'reward' is 1000"),
        ({**OK, "reward": "1"}, "column 'reward' is '1'"),
        ({**OK, "reward": [1]}, "column 'reward' is"),
        ({**OK, "rewards": [1]}, "column 'rewards' does not fit; expected one of reward and rewards"),
        ({"prompt": "p", "completion": "c", "rewards": []}, "column 'rewards' is .*a list of 1 numbers"),
        ({"prompt": "p", "completion": "c", "rewards": [1, None]}, "column 'rewards' is None"),
        ({"prompt": "p", "completion": [assistant("a"), user("b"), assistant("c")], "rewards": [1]}, "list of 2 num"),
        ({"messages": [user("p"), assistant("a"), user("q"), assistant("b")], "rewards": [1]}, "list of 2 num"),
        ({"prompt": "p", "completions": ["a", "b"], "rewards": [1]}, "list of 2 numbers, one a completion"),
        ({"prompt": "p", "completions": ["a", "b"], "reward": 1}, "column 'reward' does not fit"),
        ({"prompt": "p", "completions": [], "rewards": []}, "column 'completions' is"),
        ({**PAIR, "score_chosen": 1}, "missing column score_rejected"),
        ({**PAIR, "score_chosen": 1, "score_rejected": float("nan")}, "column 'score_rejected' is nan"),
        ({**PAIR, "rewards": [1, 0]}, "column 'rewards' does not fit; expected score_chosen"),
        ({**PAIR, "chosen": [user("other"), assistant("a")]}, "column 'chosen' begins with a user message"),
        ({**OK, "prompt": [{"role": "boss", "content": "p"}]}, "column 'prompt', message 0: role .*'boss'; expected"),
        ({**OK, "prompt": [{"from": "human", "value": "p"}]}, "message 0: no 'role'; it has from, value"),
        ({**OK, "prompt": [{"role": "user", "content": [1]}]}, "message 0: a content part of type 'int' is no text"),
        ({**OK, "prompt": [{"role": "user"}]}, "message 0: content must be a string"),
        ({**OK, "prompt": ["p"]}, "message 0: expected an object"),
        ({**OK, "completion": 3}, "column 'completion': expected a string or a list of messages, found int 3"),
        ({**OK, "completion": "\ud800"}, "half a surrogate pair"),
        ({**OK, "prompt_id": 1.5}, "column 'prompt_id' is 1.5"),
        ({**OK, "answer_json": "{"}, "column 'answer_json' is '{'; expected JSON"),
        ({**OK, "answer_json": 4}, "column 'answer_json' is 4; expected JSON"),
        ({**OK, "prompt_id": False}, "column 'prompt_id' is False"),
    ],
)
def test_a_bad_row_is_named_with_line_and_column(source, row, message):
    data = source(row, OK)
    with pytest.raises(InputError, match=rf"rows\.jsonl:1: .*{message}"):
        list(data.load("train"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (OK, {"prompt": "p", "completion": "c"}),
        ({"prompt": "p", "completion": "c"}, OK),
        ({**PAIR, "score_chosen": 1, "score_rejected": 0}, PAIR),
    ],
)
def test_rewards_in_only_some_rows_are_refused(source, first, second):
    with pytest.raises(InputError, match=r"rows\.jsonl:2: rewards come from .*rows\.jsonl:1; give all rows"):
        list(source(first, second).load("train"))


@pytest.mark.parametrize("pair", [[1], [1, float("nan")], [1, 0, 2]])
def test_pair_rewards_are_two_finite_numbers(pair):
    with pytest.raises(InputError, match=r"data\.pair_rewards"):
        Jsonl(path="x", val_path=None, pair_rewards=pair)


def test_parquet_rows_give_the_same_examples(tmp_path, source):
    tail = [assistant("a"), {"role": "tool", "content": "t", "name": "f"}, assistant("b")]
    rows = [
        {"prompt": [user("p")], "completion": tail, "rewards": [0.5, 1.0]},
        {"prompt": [user("q")], "completion": [assistant("c")], "rewards": [2.0]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    parquet = list(Jsonl(path=str(tmp_path / "rows.parquet"), val_path=None, pair_rewards=None).load("train"))
    for a, b in zip(parquet, source(*rows).load("train"), strict=True):
        assert (a.messages, a.completions, a.rewards, a.prompt_id) == (
            b.messages,
            b.completions,
            b.rewards,
            b.prompt_id,
        )


def test_answers_of_any_type_come_from_json_in_a_column_of_text(source):
    rows = [{"prompt": "p", "completion": "c", "answer_json": text} for text in ('{"base": [1]}', '"4"', "4", None)]
    assert [e.answer for e in source(*rows).load("train")] == [{"base": [1]}, "4", 4, None]
    assert only(source({**rows[0], "answer": "4"})).answer == "4"
    assert only(source({**rows[0], "tests": ["t"]})).answer == ["t"]
    assert only(source(rows[0])).columns == {}


def test_a_validation_file_is_a_split_of_its_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**OK, "prompt": name}))
    data = Jsonl(path=str(tmp_path / "a.jsonl"), val_path=str(tmp_path / "b.jsonl"), pair_rewards=None)
    assert data.splits == ("train", "val")
    assert [[e.messages[0]["content"] for e in data.load(s)] for s in data.splits] == [["a"], ["b"]]
    assert Jsonl(path="a", val_path=None, pair_rewards=None).splits == ("train",)


def test_two_pairs_of_one_prompt_are_compared_apart_and_completions_of_one_prompt_together(tmp_path):
    """A > B and B > C say nothing of A and C, and B's two rewards are no contradiction."""
    from collections import Counter

    from shiqrun.batching.encode import encode
    from shiqrun.batching.rows import Rows
    from tests.support import helpers

    pairs = [{"prompt": "p", "chosen": a, "rejected": b} for a, b in (("best", "middle"), ("middle", "worst"))]
    single = [{"prompt": "p", "completion": c, "reward": r} for c, r in (("best", 2), ("middle", 1), ("worst", 0))]
    groups = []
    for number, lines in enumerate((pairs, single)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in lines))
        examples = Jsonl(path=str(path), val_path=None, pair_rewards=[1, -1]).load("train")
        made = Rows(list(encode(examples, helpers.tokenizer(), Counter(), max_length=None)), pad=0, together=True)
        groups.append(sorted(len(unit) for unit in made.units))
        assert made.prompts == 1
    assert groups == [[2, 2], [3]]
