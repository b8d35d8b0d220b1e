"""OREO: where its residuals vanish, where descending it arrives with and without its KL term, and who is its family."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from tests.losses.naive import gradients, ragged
from tests.losses.rows import rows_of
from tests.losses.test_fixed_points import BETA, world
from tests.losses.trees import kl

LEVELS = pytest.mark.parametrize("level", ["token", "turn"])
PLAIN = partial(losses.oreo, beta=BETA, kl_reg=0.0)


@LEVELS
@pytest.mark.parametrize("seed", range(3))
def test_residuals_vanish_at_the_optimum_and_its_value_whatever_the_shift(level, seed):
    tree, reference, q = world(seed=seed)
    value = tree.optimum(reference, BETA)[1]
    best = reference + q / BETA + torch.randn(len(tree.states), 1, dtype=torch.float64)
    for moved, least, most in ((0.0, 0, 1e-12), (0.1, 0.1 - 1e-12, 0.1 + 1e-12)):
        policy = tree.scores(best, value=value + moved)
        size, count = PLAIN(tree.trajectories(), policy, tree.scores(reference), level=level).metrics["residual_abs"]
        assert least <= float(size / count) <= most


def descended(level, kl_reg, steps=1500):
    """(tree, reference, policy, value of every state) that Adam reaches from the reference, on every path."""
    tree, reference, _ = world(vocabulary=3, horizon=3)
    table, value = reference.clone().requires_grad_(), torch.zeros(len(tree.states), dtype=torch.float64)
    value.requires_grad_()
    batch, frozen = tree.trajectories(), tree.scores(reference)
    optimiser = torch.optim.Adam([table, value], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.996)
    for _ in range(steps):
        optimiser.zero_grad()
        policy = tree.scores(table, value=value, against=reference)
        losses.oreo(batch, policy, frozen, beta=BETA, kl_reg=kl_reg, level=level).total.backward()
        optimiser.step()
        schedule.step()
    return tree, reference, table.detach(), value.detach()


def distance(tree, reference, table):
    return kl(tree.probabilities(table), tree.best_probabilities(reference, BETA))


@LEVELS
def test_descending_arrives_at_the_optimal_policy_and_its_values(level):
    tree, reference, table, value = descended(level, 0.0)
    assert distance(tree, reference, reference) > 0.1
    assert distance(tree, reference, table) < 1e-7
    known = [level == "token" or state == () or state[-1] == 1 for state in tree.states]
    expected = tree.optimum(reference, BETA)[1]
    assert_close(value[known], expected[known], rtol=0, atol=1e-3)
    assert_close(value[[not k for k in known]].sum().item(), 0.0)


@LEVELS
def test_with_the_kl_term_it_stays_nearer_to_the_reference_than_the_optimum_is(level):
    """docs/math.md, "OREO": kl_reg moves the fixed point, by more the larger it is, and not below the reference."""
    found = [descended(level, kl_reg, steps=800)[:3] for kl_reg in (0.0, 0.03, 0.3)]
    short = [distance(tree, reference, table) for tree, reference, table in found]
    away = [kl(tree.probabilities(table), tree.probabilities(reference)) for tree, reference, table in found]
    assert short[0] < 1e-8 < 1e-5 < short[1] < short[2] / 10
    assert away[0] > away[1] > away[2] > 0


@LEVELS
def test_the_policys_gradient_goes_through_the_log_ratio_of_the_action_itself_alone(level):
    """d/dD_k is -2 beta times the one residual of its action, and not the sum of those before it."""
    batch, policy, reference = ragged()
    terms = PLAIN(batch, policy, reference, level=level)
    logit, partition, _, _ = gradients(terms, policy)
    assert_close(logit, -partition)
    for b, row in enumerate(rows_of(batch, policy, reference)):
        begins = [t for t in row.actions if level == "token" or t == 0 or row.index[t] != row.index[t - 1] + 1]
        for t in row.actions:
            start = max(s for s in begins if s <= t)
            ratios = sum(row.log_ratio(k) for k in row.actions if k >= start)
            residual = sum(row.r[start:]) - BETA * ratios - row.value[start]
            assert_close(logit[b, t], (-2 * BETA * residual / len(begins)).detach())


def test_the_values_square_is_shiqs_with_the_learned_value_for_the_shift():
    """With V = beta W the fitted squares are those of ShiQ with a trajectory as the unit."""
    batch, policy, reference = ragged()
    value = BETA * (policy.log_partition - reference.log_partition)
    with_shift = type(policy)(policy.logit, policy.log_partition, value.detach())
    terms = PLAIN(batch, with_shift, reference)
    shiq = losses.shiq(batch, policy, reference, beta=BETA, units="trajectory")
    assert_close(terms.total, 2 * shiq.total)
    assert_close(terms.metrics["residual_abs"], shiq.metrics["residual_abs"])


def test_of_trajectories_of_one_action_it_is_dro_v_with_other_weights_of_its_two_parts():
    batch, policy, reference = ragged(lengths=(1, 1, 0, 1), width=2)
    ours = gradients(PLAIN(batch, policy, reference), policy)
    theirs = gradients(losses.dro_v(batch, policy, reference, beta=BETA), policy)
    assert_close(ours[2], 2 * theirs[2])
    assert_close(ours[0], 2 * BETA * theirs[0])


def test_what_is_missing_is_said():
    batch, policy, reference = ragged()
    for lacking in (replace(policy, value=None), replace(policy, kl=None)):
        with pytest.raises(ValueError, match=r"policy.value and, with kl_reg, policy.kl"):
            losses.oreo(batch, lacking, reference, beta=BETA)
    assert PLAIN(batch, replace(policy, kl=None), reference).total.isfinite()
