"""Several updates on a batch: the numbers of a loop by hand, however a step is cut, and resumed."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from shiqrun.batching.data_module import LoggedData
from shiqrun.errors import TrainingError
from shiqrun.training.step.schedule import learning_rate_factor
from tests.training.step.fitting import BATCH, SaveAt, asked, broken, fit, given, packed, ppo, weights


def test_a_step_of_several_updates_does_not_depend_on_how_it_is_cut():
    one, many = ppo(), ppo()
    fit(one, tokens=10**6)
    fit(many, tokens=24)
    assert_close(weights(many), weights(one), rtol=0, atol=5e-6)  # float32, sums in another order
    assert not any(torch.equal(a, b) for a, b in zip(weights(one), weights(ppo()), strict=True))


def test_several_updates_are_those_of_a_loop_by_hand():
    made, twin, encoded = ppo(), ppo(), given()
    trainer = fit(made, encoded, tokens=10**6)
    assert trainer.global_step == made.global_step == 5
    data = LoggedData(encoded, batch_size=BATCH, micro_batch_tokens=10**6, seed=0)
    data.train_dataloader()
    head = list(twin.policy.value.parameters())
    body = list(twin.policy.model.parameters())
    optimiser = torch.optim.AdamW([{"params": body}, {"params": head}], weight_decay=0.01)
    for step, (batch,) in zip(range(5), data.steps, strict=False):
        proximal = None
        for _ in range(3):
            scores = twin.policy(batch)
            proximal = proximal or scores.detach()
            terms = twin.loss(replace(batch, proximal=proximal), scores, twin.reference(batch))
            optimiser.zero_grad()
            (terms.total / terms.count).backward()
            for group in optimiser.param_groups:
                group["lr"] = 1e-2 * learning_rate_factor(step, "linear", 2, 5)
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimiser.step()
    assert_close(weights(made), weights(twin), rtol=0, atol=5e-6)  # one kernel for all of AdamW, or several


def test_the_policy_is_read_once_an_update_and_the_reference_once_a_batch():
    made, read = ppo(), Counter()
    made.policy.register_forward_hook(lambda *_: read.update(["policy"]))
    made.reference.policy.register_forward_hook(lambda *_: read.update(["reference"]))
    data = LoggedData(given(), batch_size=BATCH, micro_batch_tokens=24, seed=0)
    data.train_dataloader()
    batches = sum(len(data.steps.rows_of(step)) for step in range(5))
    fit(made)
    assert batches > 5
    assert read == {"policy": 3 * batches, "reference": batches}


def test_an_anchor_on_the_policys_tokens_reads_the_reference_at_every_update():
    made, read = ppo(anchor=1.0, anchor_from="policy", steps=2), []
    made.reference.policy.register_forward_pre_hook(lambda _, args: read.append(args[0].anchor_tokens))
    fit(made, tokens=10**6)
    assert len(read) == 6
    assert not any(torch.equal(a, b) for a, b in pairwise(read) if a.shape == b.shape)


def test_a_row_shows_what_a_step_found_and_what_its_last_update_measured():
    kept = []
    fit(ppo(log_every=1), kept=kept)
    rows = [row for _, row in kept]
    assert rows[0]["train/logratio_abs"] < 1e-5
    assert all(
        {"train/entropy", "train/reward", "train/value_loss", "train/importance_mean"} <= set(row) for row in rows
    )
    assert all(row["train/approx_kl"] > 1e-6 for row in rows)
    kept = []
    fit(ppo(log_every=1, epochs=1), kept=kept)
    assert all(row["train/approx_kl"] == 0 for _, row in kept)


def test_tokens_of_a_batch_are_counted_once():
    made, once = ppo(), ppo(epochs=1)
    fit(made)
    fit(once)
    assert made.num_tokens == once.num_tokens > 0


def test_no_step_of_several_updates_waits_for_the_device(monkeypatch):
    assert not asked(monkeypatch, *packed(ppo(steps=9, reads_late=True), given()))


def test_a_resumed_run_of_several_updates_goes_on_to_the_same_bits(tmp_path):
    whole, stopped, resumed = ppo(steps=6), ppo(steps=6), ppo(steps=6)
    fit(whole)
    fit(stopped, callbacks=[SaveAt(tmp_path / "a.ckpt", 3)])
    fit(resumed, checkpoint=tmp_path / "a.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert resumed.num_tokens == whole.num_tokens


@pytest.mark.parametrize("late", [False, True])
def test_nonsense_in_a_later_update_is_named_with_it(late):
    made = ppo(wrapped=broken, reads_late=late, steps=7)
    with pytest.raises(TrainingError, match=r"step 2, update 2: the loss is nan on a micro-batch of 3 rows"):
        fit(made, tokens=10**6)
    assert all(torch.isfinite(w).all() for w in weights(made))


def test_data_that_nobody_sampled_are_validated_without_the_loss_that_samples_need():
    made = ppo()
    batch = given().val.collate([0, 1, 2])
    assert {"loss", "policy_loss", "reward", "logratio_mean"} <= set(made.validation_metrics(batch))
    assert set(made.validation_metrics(replace(batch, behaviour_logp=None))) == {
        "reward",
        "logratio_mean",
        "logratio_abs",
        "shifted_value",
    }
