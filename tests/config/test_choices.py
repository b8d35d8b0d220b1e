"""Data sets and rewards of a user's own package need only the method that is their own, on the command line too."""

import json
import os
import subprocess
import sys

import pytest

from shiqrun.data.source import as_source
from shiqrun.errors import InputError
from shiqrun.rewards.reward import Bounded, as_reward

PACKAGE = '''
from shiqrun.types import Example


class Mine:
    """Only `load`."""

    def __init__(self, *, number: int):
        self.number = number

    def load(self, split):
        assert split == "train"
        for n in range(self.number):
            said = [[{"role": "assistant", "content": text}] for text in ("yes", "no no")]
            yield Example([{"role": "user", "content": f"is {n} fine?"}], said, [1.0, 0.0], f"prompt {n}")


class Split(Mine):
    splits = ("train", "val")

    def load(self, split):
        for e in super().load("train"):
            opening = {"role": "system", "content": f"{split}?"}
            yield Example([opening, *e.messages], e.completions, e.rewards, e.prompt_id)


class Length:
    """Only `score`."""

    def score(self, items):
        return [float(len(item.text)) for item in items]
'''
SIZE = ("model.hidden_size=16", "model.intermediate_size=24", "model.num_layers=1", "model.num_heads=2")
STEPS = ("trainer.max_steps=2", "trainer.batch_size=8", "eval.every=2", "eval.max_prompts=4", "eval.max_new_tokens=4")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("outside")
    (place / "mypackage.py").write_text(PACKAGE)
    for group, name, target, more in (
        ("data", "mine", "Mine", "number: 20\n"),
        ("data", "split", "Split", "number: 20\n"),
        ("reward", "length", "Length", ""),
    ):
        (place / "conf" / group).mkdir(parents=True, exist_ok=True)
        (place / "conf" / group / f"{name}.yaml").write_text(f"_target_: mypackage.{target}\n{more}")
    return place


def shiqrun(home, *words):
    """Runs where `./conf` holds the YAML and the package is on PYTHONPATH."""
    command = [sys.executable, "-m", "shiqrun", *words]
    path = os.pathsep.join([str(home), os.getcwd()])
    environment = os.environ | {"PYTHONPATH": path, "SHIQRUN_CACHE": str(home / "cache")}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("data", ["mine", pytest.param("split", marks=pytest.mark.slow)])
def test_a_run_on_a_users_own_data_scored_by_a_users_own_reward(home, data):
    words = (f"data={data}", "eval.reward=length", *SIZE, *STEPS, "logger=none", f"run_dir={home / data}")
    done = shiqrun(home, "train", *words)
    assert done.returncode == 0, done.stderr
    summary = json.loads((home / data / "summary.json").read_text())
    assert summary["reward/name"] == "Length"
    assert summary["val/reward"] >= 0
    assert summary["trajectories/train"] == (40 if data == "split" else 40 - summary["trajectories/val"])
    done = shiqrun(home, "eval", f"run={home / data}", f"run_dir={home / data}_eval")
    assert done.returncode == 0, done.stderr
    found = json.loads((home / f"{data}_eval" / "eval.json").read_text())
    assert found["eval/reward"] == pytest.approx(summary["val/reward"])


class OnlyLoad:
    def __init__(self):
        self.dropped = None

    def load(self, split):
        self.dropped = {"rows": 1}
        return [split]


class OnlyScore:
    def __init__(self, factor=1.0):
        self.factor = factor

    def score(self, items):
        return [self.factor for _ in items]


class Reads(OnlyScore):
    right = 2.0

    def context(self):
        return 7

    def lengths(self, items):
        return [1 for _ in items]


def test_what_a_class_defines_wins_over_the_default_even_when_it_changes_later():
    source = as_source(OnlyLoad())
    assert (source.splits, source.environment(), source.exact(None, split="val", beta=1.0)) == (("train",), None, None)
    assert source.load("train") == ["train"] == list(source.tasks("train"))
    assert source.dropped == {"rows": 1}
    assert as_source(source) is source


def test_a_fingerprint_tells_settings_apart_and_is_the_same_for_equal_ones():
    prints = {as_reward(OnlyScore(1.0)).fingerprint(), as_reward(OnlyScore(1.0)).fingerprint()}
    assert len(prints) == 1
    assert as_reward(OnlyScore(2.0)).fingerprint() not in prints
    assert as_reward(Reads(1.0)).fingerprint() not in prints


def test_a_reward_that_reads_tokens_says_so_through_the_adoption():
    read, plain = as_reward(Reads()), as_reward(OnlyScore())
    assert isinstance(read, Bounded)
    assert not isinstance(plain, Bounded)
    assert (read.right, plain.right) == (2.0, None)


def test_a_class_without_its_one_method_is_named():
    with pytest.raises(InputError, match=r"data\._target_: builtins\.dict has no method load"):
        as_source({})
    with pytest.raises(InputError, match=r"reward\._target_: .*OnlyLoad has no method score"):
        as_reward(OnlyLoad())
