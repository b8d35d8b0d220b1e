"""Losses and gradients that are no numbers: named with step and rows, and changing no weight."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback

from shiqrun.errors import TrainingError
from shiqrun.training.callbacks import Checkpoints, Validation
from shiqrun.training.step.sums import PendingStep
from tests.training.step.fitting import ROW, SaveAt, fit, given, method, weights


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_no_number_is_named_with_its_step_and_rows_and_changes_no_weight(late):
    made = method(steps=7, reads_late=late)
    with pytest.raises(TrainingError) as error:
        fit(made, given(nonsense=ROW))
    assert "step 2: the loss is nan on a micro-batch of" in str(error.value)
    assert "nothing was updated" in str(error.value)
    assert f"file:{ROW + 1}" in str(error.value)
    assert made.global_step == (3 if late else 1)  # it is read at step 4, before that step's update

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = True

    whole = method(steps=7)
    fit(whole, callbacks=[Stop()])
    assert whole.global_step == 1
    assert all(torch.equal(a, b) for a, b in zip(weights(made), weights(whole), strict=True))


def cliff(loss):
    """The loss, whose gradient is infinite in the third call: its value is finite."""
    calls = []

    def steep(*args):
        terms = loss(*args)
        calls.append(1)
        edge = terms.total - terms.total.detach()
        return replace(terms, total=terms.total + edge.sqrt()) if len(calls) == 3 else terms

    return steep


@pytest.mark.parametrize("late", [False, True])
def test_a_gradient_that_is_no_number_changes_no_weight(late):
    made, still = method(steps=7, reads_late=late, wrapped=cliff), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            still.append(weights(pl_module))

    with pytest.raises(TrainingError, match=r"step \d: the gradient norm is \[(nan|inf)\]; nothing was updated"):
        fit(made, callbacks=[Watch()])
    assert all(torch.isfinite(w).all() for w in weights(made))
    assert not late or all(torch.equal(a, b) for a, b in zip(still[-1], weights(made), strict=True))


def endless(loss):
    """The loss, infinite from the third call on: its gradient is as it was."""
    calls = []

    def grown(*args):
        terms = loss(*args)
        calls.append(1)
        return replace(terms, total=terms.total + float("inf")) if len(calls) > 2 else terms

    return grown


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_without_end_is_refused_though_its_gradient_is_finite(late):
    with pytest.raises(TrainingError, match=r"step \d: the loss is inf on a micro-batch"):
        fit(method(steps=7, reads_late=late, wrapped=endless))


def test_no_checkpoint_is_written_of_what_was_not_finite(tmp_path):
    made = method(steps=7, log_every=100, reads_late=True)
    with pytest.raises(TrainingError, match="step 2: the loss is nan"):
        fit(made, given(nonsense=ROW), callbacks=[SaveAt(tmp_path / "a.ckpt", 3)])
    assert not list(tmp_path.iterdir())
    assert made.global_step == 3


def test_nor_is_it_evaluated(tmp_path):
    made, kept = method(steps=7, log_every=100, reads_late=True), []
    validation = Validation(3, Checkpoints(tmp_path, 1000))
    with pytest.raises(TrainingError, match="step 2: the loss is nan"):
        fit(made, given(nonsense=ROW), callbacks=[validation], kept=kept)
    assert [step for step, metrics in kept if any("val/" in name for name in metrics)] == [0]


def test_another_ranks_nonsense_is_called_that():
    nan, one = torch.tensor(float("nan")), torch.ones(())
    said = PendingStep(5, 1, [one], nan, one.view(1), one).error(sources=None)
    assert said == "step 5: the loss is not finite on another rank; nothing was updated"


def test_a_wrong_start_stops_and_says_why():
    """A reference that is not the policy: the run must not go on as if its KL were zero."""
    made = method(steps=3)
    with torch.no_grad():
        made.reference.policy.causal_lm.get_output_embeddings().weight *= 1.1
    before = weights(made)
    with pytest.raises(TrainingError, match="differ before the first step"):
        fit(made)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(made), strict=True))
