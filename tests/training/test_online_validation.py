"""Validation of runs that sample while they learn: its checkpoints are of weights that sampling goes on with."""

import pytest
import torch

from shiqrun.cli import main
from shiqrun.errors import InputError
from shiqrun.evaluation.evaluator import CompletionEvaluator
from tests.support.command_line import checkpoint, metrics, timeless
from tests.support.online_words import TINY, live
from tests.support.places import working_in

WORDS = ("rollout.model_update_interval=3", "eval.every=3", "eval.max_prompts=4", "eval.max_new_tokens=4")
WORDS = (*WORDS, "trainer.max_steps=8", "trainer.log_every=1", "trainer.learning_rate=1e-2")


pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def whole(home):
    """A run that nothing happened to."""
    with working_in(home):
        assert live("shiq", *WORDS, "run_dir=whole", model=TINY) == 0
    return home / "whole"


def sampled_by(found):
    """(step, version) of a checkpoint; its own weights are the published ones, so that none are beside them."""
    assert found["callbacks"]["Rollouts"]["weights"] is None
    return found["global_step"], found["callbacks"]["Rollouts"]["version"]


def test_a_run_whose_evaluation_failed_goes_on_as_one_whose_did_not(home, whole, monkeypatch, capfd):
    answered, calls = CompletionEvaluator.run, []

    def failing(self, policy):
        calls.append(1)
        if len(calls) == 3:  # of steps 0, 3 and 6
            raise InputError("the judge is away")
        return answered(self, policy)

    with monkeypatch.context() as patch:
        patch.setattr(CompletionEvaluator, "run", failing)
        assert live("shiq", *WORDS, "run_dir=failed", model=TINY) == 1
    assert "the evaluation of step 6 failed: the judge is away" in " ".join(capfd.readouterr().err.split())
    assert checkpoint(home / "failed", "best")["global_step"] == 3
    assert sampled_by(checkpoint(home / "failed")) == (6, 6)
    assert main(["train", "resume=failed"]) == 0
    one, other = (checkpoint(run_dir)["state_dict"] for run_dir in (whole, home / "failed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert timeless(metrics(home / "failed")) == timeless(metrics(whole))
