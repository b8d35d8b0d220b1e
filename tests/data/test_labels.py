"""Labels and bools as rewards (`prompt, completion, label`, as for KTO), through the real commands."""

import json
import logging
from pathlib import Path

import pytest

from shiqrun.cli import main
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from tests.support.command_line import summary

pytestmark = pytest.mark.usefixtures("workplace")


def kto(number, label=None):
    return {
        "prompt": f"ask {number}",
        "completion": f"answer {number}",
        "label": bool(number % 2) if label is None else label,
    }


def written(*rows):
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


def read(*rows, label_rewards=(1, -1)):
    labels = label_rewards and list(label_rewards)
    return [*Jsonl(path=written(*rows), val_path=None, pair_rewards=None, label_rewards=labels).load("train")]


def test_a_method_with_rewards_trains_on_labels_and_says_so(capfd):
    written(*map(kto, range(30)))
    words = (
        "data=jsonl",
        "data.path=rows.jsonl",
        "algo=shiq",
        "logger=none",
        "trainer.max_steps=1",
        "eval.max_prompts=0",
    )
    small = ("model.hidden_size=16", "model.num_layers=1", "trainer.batch_size=4", "run_dir=run")
    assert main(["train", *words, *small]) == 0
    said = capfd.readouterr()
    assert (said.out + said.err).count("label: true gets reward 1, false -1 (data.label_rewards") == 1
    assert summary(Path("run"))
    assert main(["train", *words, *small[:-1], "data.label_rewards=null", "run_dir=none"]) == 2
    assert "algo=shiq needs rewards" in capfd.readouterr().err


@pytest.mark.parametrize(("rewards", "expected"), [((1, -1), [-1.0, 1.0]), ((0.5, 0), [0.0, 0.5]), (None, None)])
def test_a_label_is_the_reward_that_the_key_gives_it(rewards, expected):
    found = read(kto(0), kto(1), label_rewards=rewards)
    assert [e.rewards for e in found] == [None if expected is None else [value] for value in expected or [None] * 2]


def test_a_chat_has_a_label_too():
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (one,) = read({"messages": chat, "label": True})
    assert one.rewards == [1.0]


def test_cells_of_true_and_false_are_labels():
    Path("rows.csv").write_text("prompt,completion,label\nq,a,True\nq,b,false\n")
    source = Jsonl(path="rows.csv", val_path=None, pair_rewards=None, label_rewards=[1, -1])
    assert [e.rewards for e in source.load("train")] == [[1.0], [-1.0]]


def test_a_reward_wins_over_a_label_and_other_labels_are_none(caplog):
    with caplog.at_level(logging.INFO, "shiqrun"):
        assert [e.rewards for e in read({**kto(1), "reward": 3})] == [[3.0]]
        assert [e.rewards for e in read(kto(0, "spam"), kto(1, "ham"))] == [None, None]
    assert caplog.text.count("columns that nothing reads: label") == 2


def test_rows_with_and_without_a_label_are_refused():
    with pytest.raises(InputError, match=r"rows\.jsonl:2: rewards come from nowhere, but from data\.label_rewards"):
        read(kto(0), {"prompt": "p", "completion": "c"})


@pytest.mark.parametrize("rewards", [[1], [1, float("inf")], [1, 0, 2]])
def test_label_rewards_are_two_finite_numbers(rewards):
    with pytest.raises(InputError, match=r"data\.label_rewards"):
        Jsonl(path="x", val_path=None, pair_rewards=None, label_rewards=rewards)


def test_a_bool_is_a_reward_of_1_or_0():
    rows = [{"prompt": f"p{n}", "completion": "c", "reward": n == 1} for n in range(2)]
    assert [e.rewards for e in read(*rows)] == [[0.0], [1.0]]
    (one,) = read({"prompt": "p", "completions": ["a", "b"], "rewards": [True, False]})
    assert one.rewards == [1.0, 0.0]


def test_scored_rows_have_the_score_instead_of_the_label(capfd):
    written(*({**kto(n), "answer": "answer 1"} for n in range(4)))
    assert main(["score", "data=jsonl", "data.path=rows.jsonl", "reward=exact_match", "run_dir=scored"]) == 0
    rows = [json.loads(line) for line in Path("scored/scored.jsonl").read_text().splitlines()]
    assert [(row["reward"], row["label"]) for row in rows] == [(0.0, False), (1.0, True), (0.0, False), (0.0, True)]
    said = capfd.readouterr()
    assert "label_rewards" not in said.out + said.err
