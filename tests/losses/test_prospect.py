"""KTO: who is desirable, what the KL estimate does, and what is left at the end."""

from dataclasses import replace
from functools import partial
from math import exp

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from tests.losses.naive import gradients, ragged
from tests.losses.trees import Tree, kl, minimised

BETA = 0.6
KTO = partial(losses.kto, beta=BETA)


def estimated(batch, z):
    return replace(batch, kl_estimate=torch.tensor(z, dtype=torch.float64))


def test_at_the_reference_every_completion_is_pulled_or_pushed_by_a_quarter_of_beta_times_its_weight():
    batch, policy, _ = ragged()
    terms = KTO(estimated(batch, 0.0), policy, policy.detach(), desirable_weight=2.0, undesirable_weight=0.5)
    returns = batch.rewards.masked_fill(~batch.action_mask, 0).sum(-1)
    weight = torch.where(returns > 0, -2.0, 0.5)[:, None].to(torch.float64)
    assert_close(gradients(terms, policy)[0], (BETA / 4 * weight * batch.action_mask))
    assert {float(w) for w in weight} == {-2.0, 0.5}


def test_a_return_at_the_threshold_is_undesirable():
    batch, policy, reference = ragged(lengths=(1, 1, 1), width=1)
    batch = replace(batch, rewards=torch.tensor([[0.5], [0.25], [0.0]], dtype=torch.float64))
    shown = KTO(batch, policy, reference, threshold=0.25).metrics
    assert [int(x) for x in shown["desirable"]] == [1, 3]
    assert [int(shown[f"rewards/{kind}"][1]) for kind in ("chosen", "rejected")] == [1, 2]


@pytest.mark.parametrize("rewards", [[0.1, 0.6], [0.6, 0.1]])
def test_a_return_that_rounding_lifts_over_the_threshold_is_undesirable(rewards):
    """A return of .7 less a group's mean of .7, taken from the last reward in float32."""
    batch, policy, reference = ragged(lengths=(2,), width=2)
    batch = replace(batch, rewards=torch.tensor([rewards]) - torch.tensor([[0.0, 0.7]]))
    assert [int(x) for x in KTO(estimated(batch, 0.0), policy, reference).metrics["desirable"]] == [0, 1]


def test_no_gradient_reaches_the_estimate():
    batch, policy, reference = ragged()
    z = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    terms = KTO(replace(batch, kl_estimate=z), policy, reference)
    (found,) = torch.autograd.grad(terms.total, [z], allow_unused=True)
    assert found is None


def test_both_losses_meet_at_the_estimate():
    """A log-ratio of z costs half the weight, whoever has it."""
    batch, policy, _ = ragged()
    ratio = (policy.logit - policy.log_partition).masked_fill(~batch.action_mask, 0).sum(-1)
    frozen = type(policy)(policy.logit.detach().clone(), policy.log_partition.detach().clone())
    frozen.logit[:, 0] -= 1.7
    terms = KTO(estimated(batch, 1.7), policy, frozen, desirable_weight=2.0, undesirable_weight=2.0)
    assert ratio.isfinite().all()
    assert_close(terms.total.item(), float(terms.count))


@pytest.mark.parametrize("z", [pytest.param(0.0, marks=pytest.mark.slow), 0.8])
def test_certain_labels_put_everything_on_desirable_completions_whatever_they_earn(z):
    """docs/math.md, "KTO": what the desirable ones share out follows from pi_ref and z, and not from rewards."""
    tree = Tree(vocabulary=3, horizon=3)
    reference, returns = tree.table(), tree.returns()
    batch, frozen = estimated(tree.trajectories(), z), tree.scores(reference)
    policy = tree.probabilities(minimised(lambda table: KTO(batch, tree.scores(table), frozen), reference))
    good = [r > 0 for r in returns]
    assert 1 < sum(good) < len(good)
    assert sum(p for p, g in zip(policy, good, strict=True) if not g) < 1e-3
    prior = tree.probabilities(reference)
    pull = [
        slope(BETA * (torch.tensor(p / q).log().item() - z)) / p
        for p, q, g in zip(policy, prior, good, strict=True)
        if g and p > 1e-3
    ]
    assert len(pull) > 1
    assert max(pull) == pytest.approx(min(pull), rel=1e-2), "a stationary point on the simplex"
    assert kl(policy, tree.best_probabilities(reference, BETA)) > 0.1


def slope(x):
    """The derivative of the sigmoid."""
    return 1 / (1 + exp(-x)) / (1 + exp(x))


def test_without_an_estimate_there_is_no_loss():
    batch, policy, reference = ragged()
    with pytest.raises(ValueError, match="KL estimate"):
        KTO(replace(batch, kl_estimate=None), policy, reference)
