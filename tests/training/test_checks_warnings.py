"""What is rarely meant is said once before training, at a dry run too, and not where it does not hold."""

import json
from types import SimpleNamespace

import pytest

from shiqrun.training import callbacks
from shiqrun.training.checks_warnings import reward_model_beats_chance
from tests.support.command_line import SMALL, main, metrics, train
from tests.support.helpers import llama, tokenizer
from tests.support.places import working_in

WARMUP = "trainer.warmup_steps=10 does not end before the run's 4 steps"
RANDOM = "the reference of algo=shiq is a model with random weights"
LONG = ("trainer.max_steps=12", "trainer.warmup_steps=3")


@pytest.fixture(scope="module")
def trained(home):
    """A policy by sft."""
    with working_in(home):
        assert train("algo=sft", "run_dir=sft", *LONG, "eval.every=0") == 0
    return home / "sft" / "policy"


def said(capfd, *words):
    """What a dry run says, on one line."""
    capfd.readouterr()
    small = [w for w in SMALL if not w.startswith("model.")]
    assert main(["train", *small, "dry_run=true", *words]) == 0
    out, err = capfd.readouterr()
    return " ".join((out + err).split())


def test_a_warmup_that_outlasts_the_run_and_its_last_rate(at_home, capfd):
    out = said(capfd, "trainer.max_steps=4", "trainer.learning_rate=0.01")
    assert out.count(WARMUP) == 1
    assert "up to 0.004 at the last step (trainer.learning_rate=0.01)" in out
    assert "does not end before" not in said(capfd, *LONG)


def test_an_untrained_reference_where_a_method_reads_one(at_home, trained, capfd):
    assert said(capfd, *LONG, "algo=shiq").count(RANDOM) == 1
    assert "random weights" not in said(capfd, *LONG, "algo=sft")
    assert "random weights" not in said(capfd, *LONG, "model=hf", f"model.path={trained}")


def test_a_tokenizer_without_an_end_of_sequence(workplace, capfd):
    (workplace / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": f"hello {i}", "completion": "so", "reward": i % 2}) + "\n" for i in range(8))
    )
    words = ("algo.beta=0.1", "data=jsonl", "data.path=data.jsonl", "model=hf", "model.path=model", "eval.every=0")
    for eos, times in ((None, 1), ("</s>", 0)):
        tokens = tokenizer(eos=eos)
        model = llama(vocabulary=len(tokens))
        model.generation_config.eos_token_id = model.config.eos_token_id = None
        model.save_pretrained("model")
        tokens.save_pretrained("model")
        capfd.readouterr()
        assert main(["train", "logger=none", "dry_run=true", *words, *LONG]) == 0
        out = " ".join("".join(capfd.readouterr()).split())
        assert out.count("the tokenizer has no EOS token") == times


@pytest.mark.parametrize(("accuracy", "times"), [(0.52, 1), (0.58, 0)])
def test_a_reward_model_at_chance(workplace, accuracy, times):
    """256 pairs: a coin gets 0.5 +- 0.061."""
    summary = {"algo": "reward_model", "val/accuracy": accuracy, "trajectories/val": 512}
    (workplace / "summary.json").write_text(json.dumps(summary))

    class Scored:
        path = str(workplace / "reward_model")

    run = SimpleNamespace(plan=SimpleNamespace(reward=Scored()))
    said = reward_model_beats_chance(run) or ""
    assert said.count("is at chance: right on") == times
    assert "256 held-out pairs" in said or not times


def test_a_policy_that_has_left_its_reference_is_said_once(at_home, trained, capfd, home, monkeypatch):
    monkeypatch.setattr(callbacks, "FAR_NATS", 3.0)  # a policy of one step of a small world cannot go far
    words = ("model=hf", f"model.path={trained}", "trainer.learning_rate=1", "trainer.grad_clip=1e9", "eval.every=2")
    small = [w for w in SMALL if not w.startswith("model.")]
    assert main(["train", *small, *words, "algo.beta=0.001", "run_dir=far", "trainer.max_steps=8"]) == 0
    assert max(row.get("val/kl", 0) for row in metrics(home / "far")) > 3
    assert "".join(capfd.readouterr()).count("the policy has left its reference") == 1
