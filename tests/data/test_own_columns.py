"""`data.columns` and the line that says how rows were read, through the real commands."""

import json
import logging
from pathlib import Path
from typing import get_args

import pytest

from shiqrun.cli import main
from shiqrun.data.columns import NAMES, ColumnName
from shiqrun.data.jsonl import Jsonl
from tests.data.test_tools import row as chat_row
from tests.data.test_tools import talk

pytestmark = pytest.mark.usefixtures("workplace")
SMALL = ("data=jsonl", "data.path=rows.jsonl", "model.hidden_size=16", "model.num_layers=1")
OWN = ("data.columns.prompt=question", "data.columns.completion=response", "data.columns.reward=score")


def written(*rows):
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


def own(number):
    return {"question": f"ask {number}", "response": f"answer {number}", "score": number}


def read(*rows, **options):
    source = Jsonl(path=written(*rows), val_path=None, pair_rewards=[1, -1], **options)
    return [*source.load("train")]


def refused(capfd, *words):
    assert main(["inspect", *SMALL, *words]) == 2
    return capfd.readouterr().err.strip().splitlines()[-1]


def test_rows_of_other_names_train_and_say_how_they_were_read(capfd):
    written(*map(own, range(30)))
    words = ("algo=shiq", "logger=none", "trainer.max_steps=1", "trainer.batch_size=4", "eval.max_prompts=0")
    assert main(["train", *SMALL, *OWN, *words, "run_dir=run", "cache_dir=cache"]) == 0
    said = capfd.readouterr()
    line = "rows.jsonl: 30 rows: prompt and completion, reward from `reward` (column score)"
    assert (said.out + said.err).count(line) == 1
    assert main(["train", *SMALL, *OWN, *words, "run_dir=again", "cache_dir=cache"]) == 0  # from the row store
    said = capfd.readouterr()
    assert (said.out + said.err).count(line) == 1


def test_mapped_rows_are_those_of_the_usual_names():
    mapping = {"prompt": "question", "completion": "response", "reward": "score", "messages": None}
    usual = [{"prompt": f"ask {n}", "completion": f"answer {n}", "reward": n} for n in range(3)]
    for a, b in zip(read(*map(own, range(3)), columns=mapping), read(*usual), strict=True):
        assert (a.messages, a.completions, a.rewards, a.prompt_id) == (
            b.messages,
            b.completions,
            b.rewards,
            b.prompt_id,
        )


def test_a_mapped_column_wins_and_two_can_be_exchanged():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    (one,) = read(row, columns={"chosen": "rejected", "rejected": "chosen"})
    assert [c[0]["content"] for c in one.completions] == ["b", "a"]
    (one,) = read({"prompt": "p", "completion": "c", "reward": 1, "score": 5}, columns={"reward": "score"})
    assert one.rewards == [5.0]


def test_an_agents_trajectory_is_read_by_its_names():
    row = {"trajectory": talk(), "resolved": True, "tools": chat_row()["tools"]}
    (one,) = read(row, columns={"messages": "trajectory", "reward": "resolved"})
    assert one.rewards == [1.0]
    assert one.tools


def test_a_column_that_is_not_there_is_refused_with_the_nearest_one(capfd):
    written(*map(own, range(3)))
    said = refused(capfd, "data.columns.prompt=qestion")
    assert (
        "data.columns.prompt=qestion: rows.jsonl:1 has no such column; did you mean question? it has question," in said
    )
    assert "did you mean data.columns.prompt?" in refused(capfd, "data.columns.promt=question")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            own(1),
            "did you mean data.columns.prompt=question data.columns.completion=response data.columns.reward=score?",
        ),
        ({"instruction": "q", "completion": "a"}, "did you mean data.columns.prompt=instruction?"),
        ({"prompt": "q", "outputs": ["a"]}, "did you mean data.columns.completions=outputs?"),
        ({"conversation": talk()}, "did you mean data.columns.messages=conversation?"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "shiqrun convert FILE --from sharegpt"),
        ({"a": "q", "b": "r"}, "the row has a, b; known shapes are messages [, reward]; or prompt, completion"),
    ],
)
def test_an_unknown_shape_is_refused_with_what_would_make_it_fit(capfd, row, said):
    written(row)
    assert said in refused(capfd)


def test_a_column_of_no_row_is_refused_after_the_last_one_and_some_rows_may_lack_it(capfd):
    written(*({**own(n), **({"topic": "t"} if n else {})} for n in range(2)))
    assert "data.columns.answer=gold: rows.jsonl has no such column; it has question" in refused(
        capfd, *OWN, "data.columns.answer=gold"
    )
    assert main(["inspect", *SMALL, *OWN, "data.columns.prompt_id=topic"]) == 0


def test_errors_name_the_files_own_column(capfd):
    written({**own(1), "score": "good"})
    assert "rows.jsonl:1: column 'score' (data.columns.reward) is 'good'; expected a finite" in refused(capfd, *OWN)
    written({**own(1), "response": 3})
    assert "rows.jsonl:1: column 'response' (data.columns.completion): expected a string" in refused(capfd, *OWN)


def test_cells_of_a_table_have_the_types_of_their_new_names():
    Path("rows.csv").write_text('question,talk,score\nq,"[{""role"": ""assistant"", ""content"": ""a""}]",0.5\n')
    names = {"prompt": "question", "completion": "talk", "reward": "score"}
    (one,) = Jsonl(path="rows.csv", val_path=None, pair_rewards=None, columns=names).load("train")
    assert (one.completions, one.rewards) == ([[{"role": "assistant", "content": "a"}]], [0.5])


def test_every_column_can_be_named():
    assert {*get_args(ColumnName)} == {*NAMES, "label"}


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([chat_row(n) for n in range(2)], {}, "2 rows: chat with tools, reward per turn from `rewards`"),
        ([chat_row(0), chat_row(1, tools=None)], {}, "2 rows: chat (1 with tools), reward per turn from `rewards`"),
        ([chat_row(0)], {"tools": False}, "1 row: chat, tools left out, reward per turn from `rewards`"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], {}, "1 row: pair, rewards from data.pair_rewards"),
        (
            [{"prompt": "p", "completions": ["a", "b"], "rewards": [1, 2]}],
            {},
            "several completions, rewards from `rewards`",
        ),
        ([{"prompt": "p", "completion": "a"}], {}, "1 row: prompt and completion, no rewards"),
        (
            [{"prompt": "p", "completion": "a"}, {"messages": talk()}],
            {},
            "2 rows: 1 chat, 1 prompt and completion, no rewards",
        ),
    ],
)
def test_the_log_says_once_how_rows_were_read(caplog, rows, options, said):
    source = Jsonl(path=written(*rows), val_path=None, pair_rewards=[1, -1], **options)
    with caplog.at_level(logging.INFO, "shiqrun"):
        for _ in range(2):
            assert [*source.load("train")]
    assert caplog.text.count(said) == 1
