"""KTO against TRL's trainer: KL estimate, loss, gradients and metrics of random answers through a real small model."""

from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.losses.requirements import needs_of
from shiqrun.training.step.mismatched import with_kl_estimate
from shiqrun.types import Trajectories
from tests.losses.test_against_trl import BETA, VOCABULARY, model, scores, tokenizer, trl  # noqa: F401

WEIGHTS = {"desirable_weight": 0.7, "undesirable_weight": 1.4}


def compared(trl, folder, labels, swap=False):  # noqa: F811
    """(trainer, inputs): TRL's trainer, and its own batch of random answers with these labels."""
    draw = Random(len(labels))

    def text(least, most):
        return " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(draw.randint(least, most)))

    rows = [{"prompt": text(1, 5), "completion": " " + text(1, 8), "label": label} for label in labels]
    settings = {"train_sampling_strategy": "sequential", "loss_type": "kto", "remove_unused_columns": False}
    args = trl.KTOConfig(
        str(folder),
        beta=BETA,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_dropout=True,
        per_device_train_batch_size=len(labels),
        **settings,
        **WEIGHTS,
    )
    models = [model(0), model(1)][:: -1 if swap else 1]
    trainer = trl.KTOTrainer(*models, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
    return trainer, next(iter(trainer.get_train_dataloader()))


def trajectories(inputs, prefix="", labels=None):
    """TRL's rows, or with the prefix its mismatched ones, as trajectories; a good answer earns 1, a bad one 0."""
    places = [mask.nonzero().squeeze(-1).tolist() for mask in inputs[f"{prefix}completion_mask"]]
    width = max(len(row) for row in places)
    return Trajectories(
        input_ids=inputs[f"{prefix}input_ids"],
        attention_mask=inputs[f"{prefix}attention_mask"].bool(),
        action_index=torch.tensor([[*row, *[1] * (width - len(row))] for row in places]),
        action_mask=torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in places]),
        rewards=torch.tensor([[float(bool(label)), *[0.0] * (width - 1)] for label in labels or [0] * len(places)]),
        group=torch.arange(len(places)),
    )


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("labels", [[True, False], [True, True, False, True, False], [False, False, True]])
def test_kto_is_trls_loss_with_its_estimate_gradients_and_metrics(trl, tmp_path, labels, swap):  # noqa: F811
    """With the models swapped the mean log-ratio has the other sign, so that one of the two estimates is above 0."""
    trainer, inputs = compared(trl, tmp_path, labels, swap)
    network, reference = trainer.model, trainer.ref_model
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    theirs = trainer.compute_loss(network, inputs)
    expected = torch.autograd.grad(theirs, weights)
    batch = trajectories(inputs, labels=inputs["label"].tolist())
    batch = replace(batch, mismatched=trajectories(inputs, "KL_"))
    loss = partial(losses.kto, beta=BETA, **WEIGHTS)
    (batch,) = with_kl_estimate(
        [batch], needs_of(loss), partial(scores, network), partial(scores, reference), lambda parts: parts[0]
    )
    shown = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert float(batch.kl_estimate) == pytest.approx(shown["kl"], rel=1e-5, abs=1e-6)
    with torch.no_grad():
        frozen = scores(reference, batch)
    terms = loss(batch, scores(network, batch), frozen)
    ours = terms.total / terms.count
    assert int(terms.count) == len(labels)
    assert_close(ours, theirs)
    for found, wanted in zip(torch.autograd.grad(ours, weights), expected, strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # float32 sums in another order, through the whole network


def test_one_of_two_swapped_problems_has_an_estimate_above_zero(trl, tmp_path):  # noqa: F811
    found = []
    for swap in (False, True):
        trainer, inputs = compared(trl, tmp_path, [True, True, False, True, False], swap)
        trainer.compute_loss(trainer.model, inputs)
        found.append(trainer._metrics["train"]["kl"][-1])
    assert max(found) > 0.1
    assert min(found) == 0
