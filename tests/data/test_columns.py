"""Columns that nothing reads, and completions that repeat their prompt, in files of `data=jsonl`."""

import json
import logging

import pytest

from shiqrun.cli import main
from shiqrun.data.columns import NAMES, near_name
from shiqrun.data.hh import HH
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError

SINGLE = {"prompt": "question", "completion": "a", "reward": 1, "answer": "a"}
PAIR = {"prompt": "question", "chosen": "a", "rejected": "b"}


@pytest.fixture
def source(tmp_path):
    """A Jsonl of the given rows."""

    def make(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Jsonl(path=str(file), val_path=None, pair_rewards=[1, -1])

    return make


def said(caplog, source, level):
    """What reading a source twice logs at a level about its columns."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "shiqrun"):
        for _ in range(2):
            list(source.load("train"))
    return [r.getMessage() for r in caplog.records if r.levelname == level and "nothing reads" in r.getMessage()]


@pytest.mark.parametrize(
    ("row", "column", "meant"),
    [
        (PAIR, "score_chosn", "score_chosen"),
        (PAIR, "chosen-rating", "score_chosen"),
        (SINGLE, "promt_id", "prompt_id"),
        (SINGLE, "Prompt ID", "prompt_id"),
        ({k: v for k, v in SINGLE.items() if k != "answer"}, "test", "tests"),
        ({k: v for k, v in SINGLE.items() if k != "reward"}, "score", "reward"),
        ({"prompt": "q", "completions": ["a", "b"]}, "reward_s", "rewards"),
    ],
)
def test_a_column_near_a_known_name_is_warned_of_once(source, caplog, row, column, meant):
    (line,) = said(caplog, source(*[row | {column: 1}] * 3), "WARNING")
    assert f"'{column}'" in line
    assert f"did you mean {meant}?" in line
    assert "rows.jsonl:1" in line


def test_other_columns_are_listed_in_one_line(source, caplog):
    rows = [SINGLE | {"source": "web", "meta": {"a": 1}, "empty": None}] * 3
    assert said(caplog, source(*rows), "WARNING") == []
    (line,) = said(caplog, source(*rows), "INFO")
    assert line.endswith("rows.jsonl:1: columns that nothing reads: meta, source")


def test_a_column_of_a_later_row_is_named_too(source, caplog):
    made = source(SINGLE | {"a": 1}, SINGLE, SINGLE | {"a": 2, "promt_id": "x"})
    (line,) = said(caplog, made, "WARNING")
    assert "rows.jsonl:3" in line
    assert "promt_id" in line


def test_a_column_with_a_meaning_in_other_rows_alone_is_unread(source, caplog):
    (line,) = said(caplog, source(PAIR | {"messages": [], "completion_length": 3}), "INFO")
    assert line.endswith("columns that nothing reads: completion_length, messages")
    (line,) = said(caplog, source(SINGLE | {"score_chosen": 1, "tests": []}), "INFO")
    assert line.endswith("columns that nothing reads: answer, score_chosen")


def test_rows_with_all_columns_read_say_nothing(source, caplog):
    whole = PAIR | {"score_chosen": 1, "score_rejected": 0, "prompt_id": "p", "answer": "x"}
    assert said(caplog, source(whole), "INFO") == said(caplog, source(whole), "WARNING") == []


def test_a_name_that_is_there_already_is_not_suggested(source, caplog):
    assert near_name("completion_id", NAMES) == "completion"
    assert said(caplog, source(SINGLE | {"completion_id": 3}), "WARNING") == []


def test_columns_beside_the_two_of_hh_are_named(tmp_path, caplog):
    text = "\n\nHuman: hello\n\nAssistant: "
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"chosen": f"{text}a", "rejected": f"{text}b", "score_chosen": 3}) + "\n")
    made = HH(path=str(file), subset="both", split="train", pair_rewards=[1, -1], on_embedded_marker="drop")
    (line,) = said(caplog, made, "INFO")
    assert "score_chosen" in line


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    "words",
    [
        ("train", "trainer.max_steps=1", "logger=none", "run_dir=run"),
        ("inspect",),
        ("score", "reward=exact_match", "run_dir=run"),
        ("values", "reward=exact_match", "values.samples=1", "values.max_new_tokens=2", "run_dir=run"),
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_reads_data_names_a_misspelt_column_once(capfd, words):
    with open("rows.jsonl", "w") as file:
        for n in range(12):
            file.write(json.dumps(SINGLE | {"prompt": f"question {n}", "reward": n % 2, "promt_id": n}) + "\n")
    assert main([words[0], "data=jsonl", "data.path=rows.jsonl", *words[1:]]) == 0
    out, err = capfd.readouterr()
    assert " ".join((out + err).split()).count("did you mean prompt_id?") == 1


# ------------------------------------------------------------------ completions that repeat their prompt
def texts(source):
    return [[c[0]["content"] for c in example.completions] for example in source.load("train")]


@pytest.mark.parametrize(
    ("row", "cut"),
    [
        ({"prompt": "ask me", "completion": "ask me\nwell, I do", "reward": 1}, ["well, I do"]),
        ({"prompt": "ask me", "chosen": "ask me yes", "rejected": "ask me no"}, ["yes", "no"]),
        (
            {"prompt": "ask me", "completions": ["ask me yes", "ask me", "ask me no"], "rewards": [1, 2, 3]},
            ["yes", "no"],
        ),
    ],
    ids=["single", "pair", "several"],
)
def test_a_string_completion_that_repeats_a_string_prompt_is_cut_behind_it(source, caplog, row, cut):
    with caplog.at_level(logging.INFO, "shiqrun"):
        assert texts(source(row)) == [cut]
    assert "cut behind it" in caplog.text


def test_a_later_completion_that_does_not_repeat_its_prompt_is_an_error(source):
    rows = [{"prompt": "p", "completion": "p yes", "reward": 1}, {"prompt": "q", "completion": "no", "reward": 1}]
    with pytest.raises(InputError, match=r"rows\.jsonl:2: the completion does not repeat .*rows\.jsonl:1 does"):
        texts(source(*rows))


def test_an_answer_that_begins_with_its_prompt_by_chance_stays_whole_and_is_said(source, caplog):
    rows = [{"prompt": "q", "completion": "no", "reward": 1}, {"prompt": "hi", "completion": "hi there", "reward": 1}]
    with caplog.at_level(logging.WARNING, "shiqrun"):
        assert texts(source(*rows, *rows)) == [["no"], ["hi there"]] * 2
    assert caplog.text.count("begins with the text of its prompt") == 1
    assert "rows.jsonl:2" in caplog.text


def test_a_message_that_repeats_the_prompts_words_stays_whole(source):
    row = {"prompt": "hi", "completion": [{"role": "assistant", "content": "hi there"}], "reward": 1}
    assert texts(source(row)) == [["hi there"]]
