"""The optimum of the regularised objective is where the losses vanish."""

from functools import partial
from math import log

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
    "shiq-whole": partial(losses.shiq, beta=BETA, units="trajectory"),
    "shiq-fades": partial(losses.shiq, beta=BETA, fade=0.7),
    "shiq-fades-by-turn": partial(losses.shiq, beta=BETA, fade=0.5, fade_from="turn", units="trajectory"),
    "shiq_tk": partial(losses.shiq_tk, beta=BETA),
}
INIT = partial(losses.shiq_init, beta=BETA)
TBRM = partial(losses.tbrm, beta=BETA)
DIRECT = partial(losses.direct, beta=BETA)
DRO = partial(losses.dro, beta=BETA)
DRO_V = partial(losses.dro_v, beta=BETA)
UNSHIFTED = {
    "copg": partial(losses.copg, beta=BETA),
    "copg-best_worst": partial(losses.copg, beta=BETA, pairing="best_worst"),
    "dro_group_mean": partial(losses.dro, beta=BETA, baseline="group_mean"),
}
REFERENCE_IS_FIXED = SHAPED | UNSHIFTED | {"dro": DRO, "dro_v": DRO_V}


def world(vocabulary=4, horizon=4, seed=0):
    """(tree, reference logits, Q*)."""
    tree = Tree(vocabulary, horizon, seed)
    reference = tree.table()
    return tree, reference, tree.optimum(reference, BETA)[0]


def total(loss, tree, table, reference, rewarded=True):
    return loss(tree.trajectories(rewarded=rewarded), tree.scores(table), tree.scores(reference))


def soft_q(tree, table, reference, rewarded=True):
    """soft_q with its soft value from whole rows of the table."""
    value = BETA * tree.scores(reference.log_softmax(-1) + table / BETA).log_partition
    policy, frozen = tree.scores(table), tree.scores(reference)
    return losses.soft_q(tree.trajectories(rewarded=rewarded), policy, frozen, beta=BETA, soft_value=value)


def mean_residual(terms):
    size, count = terms.metrics["residual_abs"]
    return float(size / count)


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
    assert mean_residual(terms) < 1e-12
    assert float(total(SHAPED[name], tree, reference, reference).total) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", [INIT, TBRM], ids=["shiq_init", "tbrm"])
def test_residuals_without_shaping_vanish_at_the_optimum_with_its_own_shift(loss, seed):
    tree, reference, q = world(seed=seed)
    terms = total(loss, tree, reference.log_softmax(-1) + q / BETA, reference)
    assert mean_residual(terms) < 1e-12
    assert float(total(loss, tree, reference + q / BETA, reference).total) > 1


@pytest.mark.parametrize("seed", range(3))
def test_the_direct_residual_vanishes_at_the_optimum_on_the_references_log_probabilities(seed):
    tree, reference, q = world(seed=seed)
    terms = total(DIRECT, tree, reference.log_softmax(-1) + q / BETA, reference)
    assert mean_residual(terms) < 1e-12
    assert float(total(DIRECT, tree, reference + q / BETA, reference).total) > 1


@pytest.mark.parametrize("seed", range(3))
def test_the_soft_q_residual_vanishes_at_the_optimal_action_values(seed):
    tree, reference, q = world(seed=seed)
    assert mean_residual(soft_q(tree, q, reference)) < 1e-12
    assert float(soft_q(tree, torch.zeros_like(q), reference).total) > 1


@pytest.mark.parametrize("name", UNSHIFTED)
def test_losses_of_log_ratios_vanish_at_the_optimum_whatever_its_shift(name):
    tree, reference, q = world()
    best = reference + q / BETA + torch.randn(len(tree.states), 1, dtype=torch.float64)
    assert mean_residual(UNSHIFTED[name](tree.trajectories(), tree.scores(best), tree.scores(reference))) < 1e-12


def test_the_loss_with_a_value_network_vanishes_at_the_optimum_and_its_value():
    tree, reference, q = world()
    value = float(tree.optimum(reference, BETA)[1][tree.row[()]])
    for given, least, most in ((value, 0, 1e-12), (value + 0.1, 0.1 - 1e-12, 0.1 + 1e-12)):
        policy = tree.scores(reference + q / BETA, value=torch.tensor(given, dtype=torch.float64))
        terms = DRO_V(tree.trajectories(), policy, tree.scores(reference))
        assert least <= mean_residual(terms) <= most


def test_dro_without_a_baseline_is_off_by_the_optimal_value_at_the_optimum():
    tree, reference, q = world()
    value = float(tree.optimum(reference, BETA)[1][tree.row[()]])
    assert abs(value) > 0.1
    terms = total(DRO, tree, reference + q / BETA, reference)
    assert float(terms.total) == pytest.approx(len(tree.paths) * value**2)


def test_every_single_residual_vanishes_on_every_suffix_of_every_path():
    tree, reference, q = world()
    batch, policy, frozen = tree.trajectories(), tree.scores(reference + q / BETA), tree.scores(reference)
    value = BETA * (policy.log_partition - frozen.log_partition)
    path, step = path_residuals(batch, policy, frozen, value, BETA), step_residuals(batch, policy, frozen, BETA)
    for residual in (path, step, suffix_sum(step, 0.7)):
        assert float(residual.abs().max()) < 1e-12


@pytest.mark.parametrize("name", REFERENCE_IS_FIXED)
def test_the_reference_without_rewards_is_an_exact_fixed_point(name):
    tree, reference, _ = world()
    table = reference.clone().requires_grad_()
    policy = tree.scores(table, value=torch.tensor(0.0))
    terms = REFERENCE_IS_FIXED[name](tree.trajectories(rewarded=False), policy, tree.scores(reference))
    (gradient,) = torch.autograd.grad(terms.total, table)
    assert terms.total.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("loss", [INIT, TBRM], ids=["shiq_init", "tbrm"])
def test_without_shaping_raw_reference_logits_are_no_fixed_point(loss):
    tree, reference, _ = world()
    table = reference.clone().requires_grad_()
    terms = total(loss, tree, table, reference, rewarded=False)
    (gradient,) = torch.autograd.grad(terms.total, table)
    assert terms.total.item() > 1
    assert float(gradient.norm()) > 1


def test_the_earlier_rungs_without_rewards_are_fixed_at_the_reference_in_their_own_form():
    tree, reference, _ = world()
    zero, normalised = torch.zeros_like(reference).requires_grad_(), reference.log_softmax(-1).requires_grad_()
    rungs = (
        (soft_q(tree, zero, reference, rewarded=False), zero),
        (total(DIRECT, tree, normalised, reference, rewarded=False), normalised),
    )
    for terms, table in rungs:
        (gradient,) = torch.autograd.grad(terms.total, table)
        assert mean_residual(terms) < 1e-12
        assert float(gradient.abs().max()) < 1e-12
    assert float(total(DIRECT, tree, reference, reference, rewarded=False).total) > 1


def test_preferences_at_the_reference_cost_log_two_a_pair_and_ties_nothing():
    tree, reference, _ = world()
    terms = total(partial(losses.dpo, beta=BETA, label_smoothing=0.2), tree, reference, reference)
    n = len(tree.paths)
    assert int(terms.count) == n * (n - 1) // 2
    assert float(terms.total / terms.count) == pytest.approx(log(2))
    tied = total(partial(losses.dpo, beta=BETA), tree, tree.table(), reference, rewarded=False)
    assert (float(tied.total), int(tied.count)) == (0, 0)
    assert [float(x) for x in tied.metrics["ties"]] == [n * (n - 1) // 2] * 2


def test_without_shaping_normalised_reference_logits_give_shiq_itself():
    tree, reference, _ = world()
    table, normalised = tree.table(), reference.log_softmax(-1)
    assert_close(total(INIT, tree, table, normalised).total, total(SHAPED["shiq-1.0"], tree, table, normalised).total)


@pytest.mark.parametrize("name", ["shiq-1.0", "shiq-0.5", "shiq-fades", "shiq-fades-by-turn", "shiq_ms"])
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


def test_the_loss_of_one_residual_sees_a_shift_only_in_the_first_state():
    tree, reference, q = world()
    for state in tree.states:
        shifted = reference.log_softmax(-1) + q / BETA
        shifted[tree.row[state]] += 0.3
        assert (float(total(TBRM, tree, shifted, reference).total) > 1e-3) == (state == ())


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
