"""OREO through the real command line: its critic, its KL over the vocabulary, and the references that it takes."""

import math
from pathlib import Path

import pytest

from tests.support.command_line import checkpoint, largest_difference, metrics, train

pytestmark = pytest.mark.usefixtures("at_home")
OREO = ("algo=oreo", "algo.beta=0.5", "trainer.learning_rate=3e-3", "trainer.log_every=1", "eval.every=0")


def rows_of(run_dir):
    return [r for r in metrics(run_dir) if "train/loss" in r]


@pytest.mark.parametrize("level", ["token", "turn"])
@pytest.mark.parametrize("value", ["head", "network"])
def test_policy_and_critic_learn_from_the_reference_on(home, value, level):
    name = f"{value}_{level}"
    words = (f"algo.value={value}", f"algo.level={level}", "trainer.max_steps=20", "algo.kl_reg=0.1")
    offset = ("algo.reward_offset=-2", "trainer.learning_rate=1e-3")  # returns are about 2 on average
    ratio = {"head": 50, "network": 5}[value]  # a network of its own learns from all its layers
    assert train(*OREO, *words, *offset, f"algo.value_lr_ratio={ratio}", f"run_dir={name}") == 0
    rows = rows_of(home / name)
    assert all(math.isfinite(r["train/loss"]) for r in rows)
    assert rows[0]["train/vocabulary_kl"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["train/value_mean"] == 0
    assert rows[-1]["train/vocabulary_kl"] > 1e-4
    assert sum(r["train/value_loss"] for r in rows[-4:]) < sum(r["train/value_loss"] for r in rows[:4]) / 2
    assert rows[-1]["train/value_mean"] > 1
    assert any(k.startswith("policy.value.") for k in checkpoint(home / name)["state_dict"])
    assert any("value.body" in k for k in checkpoint(home / name)["state_dict"]) == (value == "network")


def test_a_step_does_not_depend_on_how_it_is_cut(home):
    for tokens in (10_000, 80):
        words = (f"trainer.micro_batch_tokens={tokens}", f"run_dir=cut{tokens}", "trainer.max_steps=6")
        assert train(*OREO, "algo.value=head", "algo.kl_reg=1", *words) == 0
    assert largest_difference(home / "cut10000", home / "cut80") < 5e-5


def test_the_adapters_base_is_the_reference_that_a_copy_is(home):
    for kind in ("frozen", "adapter"):
        words = ("algo.kl_reg=1", "model.lora_r=4", f"algo.reference={kind}", f"run_dir=lora_{kind}")
        assert train(*OREO, "algo.value=head", *words, "trainer.max_steps=6") == 0
    assert largest_difference(home / "lora_frozen", home / "lora_adapter") < 5e-5
    assert rows_of(home / "lora_adapter")[-1]["train/vocabulary_kl"] > 0


def test_a_heavier_kl_over_the_vocabulary_keeps_the_policy_closer(home):
    for weight in ("0.001", "30"):
        words = (f"algo.kl_reg={weight}", f"run_dir=kl{weight}", "trainer.max_steps=30", "algo.value=head")
        assert train(*OREO, *words) == 0
    free, held = (rows_of(home / f"kl{weight}")[-1]["train/vocabulary_kl"] for weight in ("0.001", "30"))
    assert held < free / 2


def test_without_that_term_scores_may_come_from_the_cache_and_are_the_same(home):
    for kind in ("cached", "frozen"):
        words = ("algo.kl_reg=0", "algo.value=head", f"algo.reference={kind}", f"run_dir=off_{kind}")
        assert train(*OREO, *words, "trainer.max_steps=4") == 0
    assert largest_difference(home / "off_cached", home / "off_frozen") < 5e-5
    assert "train/vocabulary_kl" not in rows_of(home / "off_cached")[-1]


def refused(capfd, *words):
    capfd.readouterr()
    assert train(*OREO, "trainer.max_steps=1", "run_dir=refused", *words) == 2
    assert not Path("refused").exists()
    message = capfd.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_cache_for_the_kl_over_the_vocabulary(capfd):
    message = refused(capfd, "algo.reference=cached")
    assert "no cache has the logits of all tokens; set algo.reference=frozen (or adapter), or kl_reg=0" in message


def test_sharded_weights(capfd):
    assert "set algo.kl_reg=0, or hardware=ddp" in refused(capfd, "hardware=fsdp", "hardware.accelerator=cpu")


def test_a_level_that_is_none(capfd):
    assert "algo.level" in refused(capfd, "algo.level=step")
