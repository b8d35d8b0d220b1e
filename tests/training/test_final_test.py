"""The test split: which prompts it has, and what a run measures on it after its last step."""

import json

import pytest

from shiqrun.batching.logged_data import DataSettings, both_splits, examples_of, is_held_out
from shiqrun.cli import main
from shiqrun.data.treasure_maps import draw_map_numbers
from shiqrun.types import Example
from tests.support.command_line import summary, train
from tests.support.places import working_in

PROGRAMS = (
    "data=programs",
    "data.problems=40",
    "data.val_problems=24",
    "model.hidden_size=16",
    "model.num_layers=1",
    "trainer.batch_size=16",
    "trainer.max_steps=2",
    "logger=none",
    "eval.every=2",
    "eval.reward=programs",
    "eval.max_prompts=8",
    "eval.max_new_tokens=6",
)


class Listed:
    splits = ("train",)

    def __init__(self, number):
        self.number, self.dropped = number, {}

    def load(self, split):
        for n in range(self.number):
            prompt = [{"role": "user", "content": f"question {n}"}]
            yield Example(messages=prompt, completions=[], rewards=None, prompt_id=f"id{n // 2}")


def settings(**options):
    plain = {"limit": None, "max_length": None, "val_fraction": 0.2, "completions": "all", "train_on": "assistant"}
    return DataSettings(**(plain | options))


def ids(split, **options):
    return [example.prompt_id for example in examples_of(Listed(600), split, settings(**options))]


def test_a_test_split_takes_prompts_of_training_alone_and_leaves_validation_as_it_is():
    train_before, val_before = ids("train"), ids("val")
    assert ids("selection", test_fraction=0.3) == val_before
    assert ids("val", test_fraction=0.3) == val_before
    tested, trained = ids("test", test_fraction=0.3), ids("train", test_fraction=0.3)
    assert sorted(tested + trained) == sorted(train_before)
    assert 0.23 < len(tested) / 600 < 0.37
    assert not set(tested) & (set(trained) | set(val_before))  # all rows of an id are on one side


def test_a_prompt_never_changes_sides_when_more_is_held_out():
    assert set(ids("test", test_fraction=0.1)) < set(ids("test", test_fraction=0.3))
    assert set(ids("val")) == {f"id{n}" for n in range(300) if is_held_out(f"id{n}", 0.2)}


def test_without_a_test_split_half_of_the_validation_prompts_report_and_the_others_choose():
    val, tested, chosen_by = ids("val"), ids("test"), ids("selection")
    assert sorted(tested + chosen_by) == sorted(val)
    assert 0.35 < len(tested) / len(val) < 0.65
    assert not set(tested) & set(chosen_by)  # all rows of an id are on one side
    assert ids("train") == ids("train", test_fraction=0.0)


def test_the_rows_that_are_scored_or_valued_are_not_those_of_the_test_split():
    given = [e.prompt_id for _, e in both_splits(Listed(100), settings(test_fraction=0.3), {})]
    assert given
    assert not set(given) & set(ids("test", test_fraction=0.3))


def test_test_maps_are_new_and_change_no_other_map():
    drawn = draw_map_numbers(4, 4, 1, 100, 30, 0)
    assert len(drawn["test"]) == 30
    numbers = [set(drawn[split].tolist()) for split in ("train", "val", "test")]
    assert len(set.union(*numbers)) == 160


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    with working_in(tmp_path_factory.mktemp("sampled")):
        assert main(["train", *PROGRAMS, "algo=dro", "eval.test_prompts=12", "run_dir=run", "cache_dir=cache"]) == 0
        yield


def test_a_run_answers_its_test_prompts_once_and_none_of_them_twice(sampled, tmp_path_factory):
    from pathlib import Path

    found = summary(Path("run"))
    rows = [json.loads(line) for line in Path("run/test.jsonl").read_text().splitlines()]
    assert found["test/prompts"] == len(rows) == len({row["prompt"] for row in rows}) == 12
    assert found["test/reward"] == pytest.approx(sum(row["reward"] for row in rows) / 12)
    assert {"test/kl", "test/win_rate", "test/reward_ci95", "seconds/test"} <= set(found)
    validated = {json.loads(line)["prompt"] for line in Path("run/samples.jsonl").read_text().splitlines()}
    assert not validated & {row["prompt"] for row in rows}


def test_an_evaluation_of_the_test_split_afterwards_finds_the_same(sampled):
    from pathlib import Path

    words = ("run=run", "eval.split=test", "eval.max_prompts=12", "run_dir=again")
    assert main(["eval", *words]) == 0
    again = json.loads(Path("again/eval.json").read_text())
    found = summary(Path("run"))
    assert again["eval/reward"] == found["test/reward"]
    assert again["eval/kl"] == pytest.approx(found["test/kl"], rel=1e-4)


def test_an_exact_test_has_a_row_a_map(tmp_path):
    assert train("algo=shiq", "eval.test_prompts=1", "trainer.max_steps=1", f"run_dir={tmp_path}/run") == 0
    found = summary(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/test.jsonl").read_text().splitlines()]
    assert len(rows) == 4  # data.val_maps
    for name in ("reward", "kl", "regret"):
        assert found[f"test/{name}"] == pytest.approx(sum(row[name] for row in rows) / 4)
    assert found["test/regret"] != found["val/regret"]


def test_a_run_with_a_test_validates_on_the_other_half_of_its_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {n}", "completion": f"{n}", "reward": 1.0, "answer": f"{n}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("data=jsonl", "data.path=rows.jsonl", "data.val_fraction=0.4", "eval.reward=exact_match")
    small = (*PROGRAMS[3:8], "eval.every=2", "eval.max_new_tokens=4", "eval.max_prompts=99", "eval.test_prompts=99")
    assert main(["train", *words, *small, "run_dir=run"]) == 0
    found = summary(tmp_path / "run")
    validated = {json.loads(line)["prompt"] for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()}
    tested = {json.loads(line)["prompt"] for line in (tmp_path / "run/test.jsonl").read_text().splitlines()}
    assert not validated & tested
    assert (len(validated), len(tested)) == (found["val/prompts"], found["test/prompts"])
    assert len(validated) + len(tested) == found["trajectories/val"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval.every=0", "eval.test_prompts=3"], "eval.test_prompts=3, but eval.every=0 evaluates nothing"),
        (["data.val_fraction=0.6", "data.test_fraction=0.5"], "leave no prompt to train on"),
    ],
)
def test_a_test_that_cannot_be_is_refused_in_one_line(words, said, capsys, tmp_path):
    assert train(*words, "dry_run=true", f"run_dir={tmp_path}/run") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shiqrun: error")]
    assert said in line
