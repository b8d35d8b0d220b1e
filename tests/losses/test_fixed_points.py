"""The optimum of the regularised objective is where the losses vanish, and where minimising them arrives."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.losses.residual import path_residuals, step_residuals, suffix_sum, turn_starts
from tests.losses.trees import Tree, kl

BETA = 0.6
SHAPED = {
    **{f"shiq-{lam}": partial(losses.shiq, beta=BETA, lam=lam) for lam in (0.0, 0.5, 0.9, 1.0)},
    "shiq_ms": partial(losses.shiq_ms, beta=BETA),
    "shiq_tk": partial(losses.shiq_tk, beta=BETA),
}
INIT = partial(losses.shiq_init, beta=BETA)


def world(vocabulary=4, horizon=4, seed=0):
    """(tree, reference logits, Q*)."""
    tree = Tree(vocabulary, horizon, seed)
    reference = tree.table()
    return tree, reference, tree.optimum(reference, BETA)[0]


def total(loss, tree, table, reference, rewarded=True):
    return loss(tree.trajectories(rewarded=rewarded), tree.scores(table), tree.scores(reference))


def test_backward_induction_and_enumeration_agree_on_the_optimum():
    tree, reference, q = world()
    best = tree.best_probabilities(reference, BETA)
    assert kl(tree.probabilities(reference + q / BETA), best) == pytest.approx(0, abs=1e-12)
    assert kl(tree.probabilities(reference), best) > 0.1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SHAPED)
def test_residuals_vanish_at_the_optimum_shifted_by_its_value(name, seed):
    tree, reference, q = world(seed=seed)
    terms = total(SHAPED[name], tree, reference + q / BETA, reference)
    assert float(terms.metrics["residual_abs"][0] / terms.metrics["residual_abs"][1]) < 1e-12
    assert float(total(SHAPED[name], tree, reference, reference).total) > 1


@pytest.mark.parametrize("seed", range(3))
def test_residuals_without_shaping_vanish_at_the_optimum_with_its_own_shift(seed):
    tree, reference, q = world(seed=seed)
    terms = total(INIT, tree, reference.log_softmax(-1) + q / BETA, reference)
    assert float(terms.metrics["residual_abs"][0] / terms.metrics["residual_abs"][1]) < 1e-12
    assert float(total(INIT, tree, reference + q / BETA, reference).total) > 1


def test_every_single_residual_vanishes_on_every_suffix_of_every_path():
    tree, reference, q = world()
    batch, policy, frozen = tree.trajectories(), tree.scores(reference + q / BETA), tree.scores(reference)
    value = BETA * (policy.log_partition - frozen.log_partition)
    path, step = path_residuals(batch, policy, frozen, value, BETA), step_residuals(batch, policy, frozen, BETA)
    for residual in (path, step, suffix_sum(step, 0.7)):
        assert float(residual.abs().max()) < 1e-12


def minimised(loss, tree, reference):
    """The table that LBFGS reaches from the reference on all paths."""
    table = reference.clone().requires_grad_()
    batch, frozen = tree.trajectories(), tree.scores(reference)
    settings = {"max_iter": 4000, "tolerance_grad": 1e-13, "tolerance_change": 1e-18, "history_size": 50}
    optimiser = torch.optim.LBFGS([table], line_search_fn="strong_wolfe", **settings)

    def closure():
        optimiser.zero_grad()
        terms = loss(batch, tree.scores(table), frozen)
        mean = terms.total / terms.count
        mean.backward()
        return mean

    optimiser.step(closure)
    return table.detach()


@pytest.mark.parametrize("name", [*SHAPED, "shiq_init"])
def test_minimising_from_the_reference_arrives_at_the_optimal_policy(name):
    tree, reference, _ = world(vocabulary=3, horizon=3)
    found = minimised(SHAPED.get(name, INIT), tree, reference)
    best = tree.best_probabilities(reference, BETA)
    assert kl(tree.probabilities(reference), best) > 0.1
    assert kl(tree.probabilities(found), best) < 1e-8


@pytest.mark.parametrize("name", ["shiq-1.0", "shiq-0.5", "shiq_ms", "shiq_init"])
def test_the_minimiser_is_unique_as_logits(name):
    tree, reference, q = world(vocabulary=3, horizon=3)
    base = reference.log_softmax(-1) if name == "shiq_init" else reference
    found = minimised(SHAPED.get(name, INIT), tree, reference)
    assert_close(found, base + q / BETA, rtol=0, atol=1e-5)  # LBFGS stops at gradients near 1e-13


@pytest.mark.parametrize("name", SHAPED)
def test_the_reference_without_rewards_is_an_exact_fixed_point(name):
    tree, reference, _ = world()
    table = reference.clone().requires_grad_()
    terms = total(SHAPED[name], tree, table, reference, rewarded=False)
    (gradient,) = torch.autograd.grad(terms.total, table)
    assert terms.total.item() == 0
    assert not gradient.any()


def test_without_shaping_raw_reference_logits_are_no_fixed_point():
    tree, reference, _ = world()
    table = reference.clone().requires_grad_()
    terms = total(INIT, tree, table, reference, rewarded=False)
    (gradient,) = torch.autograd.grad(terms.total, table)
    assert terms.total.item() > 1
    assert float(gradient.norm()) > 1


def test_without_shaping_normalised_reference_logits_give_shiq_itself():
    tree, reference, _ = world()
    table, normalised = tree.table(), reference.log_softmax(-1)
    assert_close(total(INIT, tree, table, normalised).total, total(SHAPED["shiq-1.0"], tree, table, normalised).total)


@pytest.mark.parametrize("name", ["shiq-1.0", "shiq-0.5", "shiq_ms"])
def test_a_state_dependent_shift_of_the_logits_is_seen_in_every_state(name):
    tree, reference, q = world()
    for state in range(len(tree.states)):
        shifted = reference + q / BETA
        shifted[state] += 0.3
        assert float(total(SHAPED[name], tree, shifted, reference).total) > 1e-3


def test_the_turnwise_loss_sees_a_shift_only_where_a_turn_starts():
    tree, reference, q = world()
    for state in tree.states:
        shifted = reference + q / BETA
        shifted[tree.row[state]] += 0.3
        seen = float(total(SHAPED["shiq_tk"], tree, shifted, reference).total) > 1e-3
        assert seen == (state == () or state[-1] == 1)


def test_supervised_fine_tuning_does_not_see_a_shift():
    tree, reference, _ = world()
    shift = torch.randn(len(tree.states), 1, dtype=torch.float64)
    assert_close(
        total(losses.sft, tree, reference + shift, reference).total, total(losses.sft, tree, reference, reference).total
    )


def test_turns_start_after_the_replies_of_the_tree():
    tree = Tree()
    starts = turn_starts(tree.trajectories())
    for path, row in zip(tree.paths, starts, strict=True):
        expected = [t == 0 or path[t - 1] == 1 for t in range(len(path))]
        assert row.tolist() == expected + [False] * (len(row) - len(path))


def test_a_terminal_reward_reaches_the_first_action_in_one_step_only_with_multi_step():
    tree, reference, _ = world()
    path = max(tree.paths, key=len)
    batch = tree.trajectories([path], rewarded=False)
    batch.rewards[0, len(path) - 1] = 1.0
    table = reference.clone().requires_grad_()
    reached = {}
    for name, loss in SHAPED.items():
        terms = loss(batch, tree.scores(table, [path]), tree.scores(reference, [path]))
        (gradient,) = torch.autograd.grad(terms.total, table)
        reached[name] = [bool(gradient[tree.row[state]].any()) for state, _ in tree.visited(path)]
    last = [False] * (len(path) - 1) + [True]
    assert reached["shiq_ms"] == reached["shiq-0.0"] == last
    assert reached["shiq-0.5"] == reached["shiq-0.9"] == reached["shiq-1.0"] == [True] * len(path)
