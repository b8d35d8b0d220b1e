"""A loss, a data set and a reward of the user's own, from outside the project, through the real command line."""

import json
from pathlib import Path

import pytest
import yaml

from shiqrun.cli import main

PACKAGE = '''
from shiqrun.types import Example, LossTerms


def squared_log_ratio(batch, policy, reference):
    """Pulls the policy to the reference, to show where a loss goes."""
    log_ratio = (policy.logp - reference.logp).masked_fill(~batch.action_mask, 0)
    return LossTerms((log_ratio**2).sum(), batch.action_mask.sum())


def towards_best(batch, policy, reference, *, beta=0.5):
    """Has a hyperparameter that its YAML leaves at its default."""
    return squared_log_ratio(batch, policy, reference)


class Echo:
    def load(self, split):
        for i in range(24):
            asked = [{"role": "user", "content": f"say {i}"}]
            yield Example(asked, [[{"role": "assistant", "content": str(i)}]], [1.0], str(i))


class Length:
    def score(self, items):
        return [float(len(item.text)) for item in items]
'''


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SHIQRUN_CACHE", str(tmp_path / "cache"))
    Path("mypackage.py").write_text(PACKAGE)
    return tmp_path


def choose(folder: str, group: str, target: str) -> None:
    path = Path(folder, group, "mine.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"_target_: mypackage.{target}\n")


@pytest.mark.parametrize(("folder", "flags"), [("conf", ()), ("elsewhere", ("--config-dir", "elsewhere"))])
def test_a_loss_needs_a_yaml_with_its_target_alone(folder, flags):
    choose(folder, "algo", "squared_log_ratio")
    small = ("data.maps=20", "data.val_maps=3", "model.hidden_size=16", "model.num_layers=1", "eval.every=0")
    words = (*small, "trainer.max_steps=2", "logger=none", "algo.reference=frozen")
    assert main(["train", *flags, "algo=mine", *words]) == 0
    (run,) = Path("outputs/mine-treasure").iterdir()
    algo = yaml.safe_load((run / ".hydra/config.yaml").read_text())["algo"]
    assert algo.items() >= {"name": "mine", "reference": "frozen", "reward_offset": "none"}.items()
    assert json.loads((run / "summary.json").read_text())["algo"] == "mine"
    assert main(["eval", f"run={run}", "eval.beta=1", "run_dir=answers"]) == 0
    assert main(["report", str(run)]) == 0


def test_a_losss_default_beta_is_the_beta_of_training_and_evaluation():
    choose("conf", "algo", "towards_best")
    small = ("data.maps=20", "data.val_maps=3", "model.hidden_size=16", "model.num_layers=1", "eval.every=1")
    words = (*small, "trainer.max_steps=1", "logger=none", "algo.reference=frozen", "+algo.anchor=1", "run_dir=run")
    assert main(["train", "algo=mine", *words]) == 0
    assert "val/regularised_return" in json.loads(Path("run/summary.json").read_text())
    assert main(["eval", "run=run", "run_dir=answers"]) == 0
    assert json.loads(Path("answers/eval.json").read_text())["beta"] == 0.5


def test_a_data_set_and_a_reward_need_a_yaml_with_their_target_alone():
    choose("conf", "algo", "squared_log_ratio")
    choose("conf", "data", "Echo")
    choose("conf", "reward", "Length")
    small = ("model.hidden_size=16", "model.num_layers=1", "trainer.max_steps=2", "logger=none")
    answers = ("eval.max_prompts=2", "eval.max_new_tokens=4", "data.val_fraction=0.3")
    assert main(["train", "algo=mine", "data=mine", "eval.reward=mine", *small, *answers, "run_dir=run"]) == 0
    config = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert (config["data"]["name"], config["eval"]["reward"]["name"]) == ("mine", "mine")
    assert main(["score", "data=mine", "reward=mine", "run_dir=scored"]) == 0
    rewards = [json.loads(line)["reward"] for line in Path("scored/scored.jsonl").read_text().splitlines()]
    assert sorted(rewards) == [1.0] * 10 + [2.0] * 14
