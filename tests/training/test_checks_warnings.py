"""What is rarely meant is said once before training, at a dry run too, and not where it does not hold."""

import pytest

from tests.support.command_line import SMALL, main, train
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
