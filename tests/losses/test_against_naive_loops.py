"""Every loss against the double loop over its formula, in value, count, gradient and metrics."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.losses.residual import (
    fading_weights,
    path_residuals,
    regularised_rewards,
    squares_by_unit,
    step_residuals,
    suffix_sum,
    turn_starts,
)
from shiqrun.types import ActionScores
from tests.losses.naive import LOSSES, decided, gradients, numbers, pairs, ragged
from tests.losses.rows import BETA, rows_of

OF_NO_SCALAR = ("dro_v", "oreo", "oreo-turn", "oreo-plain")
"""Losses that hold one network still for the other, so that their gradient is of no one scalar."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_double_loop_of_its_formula(name, seed):
    loss, naive = LOSSES[name]
    batch, policy, reference = ragged(seed=seed)
    terms = loss(batch, policy, reference)
    total, count = naive(rows_of(batch, policy, reference))
    assert_close(terms.total, total)
    assert float(terms.count) == pytest.approx(count)
    expected = torch.autograd.grad(total, numbers(policy), materialize_grads=True)
    assert_close(gradients(terms, policy), list(expected))


def test_the_random_batches_have_ties_single_completions_and_rows_without_actions():
    batch, policy, reference = ragged()
    rows = rows_of(batch, policy, reference)
    sizes = [sum(1 for row in rows if row.r and row.group == g) for g in {row.group for row in rows}]
    assert sorted(sizes) == [0, 1, 2, 3, 4]
    assert len(pairs(rows)) == len(decided(rows)) + 2
    assert len(pairs(rows, "best_worst")) == len(decided(rows, "best_worst")) + 1


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in OF_NO_SCALAR])
def test_gradients_are_those_of_finite_differences(name):
    batch, policy, reference = ragged(lengths=(3, 0, 4, 1), width=4, groups=(0, 0, 0, 0))

    def total(*numbers):
        return LOSSES[name][0](batch, ActionScores(*numbers), reference).total

    assert torch.autograd.gradcheck(total, numbers(policy))


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95, 1.0])
def test_suffix_sum_is_the_recursion_from_the_end(length, decay):
    x = torch.randn(2, length, dtype=torch.float64)
    expected = x.clone()
    for t in reversed(range(length - 1)):
        expected[:, t] += decay * expected[:, t + 1]
    assert_close(suffix_sum(x, decay), expected)


def test_neighbouring_path_residuals_differ_by_the_step_residual():
    batch, policy, reference = ragged()
    value = BETA * (policy.log_partition - reference.log_partition)
    path = path_residuals(batch, policy, reference, value, BETA)
    step = step_residuals(batch, policy, reference, BETA)
    for b, length in enumerate(batch.action_mask.sum(-1)):
        for t in range(length):
            following = path[b, t + 1] if t + 1 < length else torch.zeros(())
            assert_close(path[b, t], step[b, t] + following, check_dtype=False)


def test_lambda_zero_is_the_loss_without_multi_step():
    batch, policy, reference = ragged()
    assert_close(
        losses.shiq(batch, policy, reference, beta=BETA, lam=0.0).total,
        losses.shiq_ms(batch, policy, reference, beta=BETA).total,
    )


def test_lambda_one_is_the_limit_of_lambda_below_one():
    batch, policy, reference = ragged()
    assert_close(
        losses.shiq(batch, policy, reference, beta=BETA, lam=1.0).total,
        losses.shiq(batch, policy, reference, beta=BETA, lam=1.0 - 1e-12).total,
    )


@pytest.mark.parametrize("loss", [losses.shiq, losses.shiq_init, losses.shiq_ms])
def test_of_trajectories_of_one_length_both_units_give_the_same_step(loss):
    """Total over count is what a step descends."""
    batch, policy, reference = ragged(lengths=(5, 0, 5, 5), width=6, groups=(0, 1, 2, 2))
    by_action, whole = (loss(batch, policy, reference, beta=BETA, units=u) for u in ("action", "trajectory"))
    assert (int(by_action.count), int(whole.count)) == (15, 3)
    assert_close(by_action.total / 15, whole.total / 3)


def test_a_long_trajectory_outweighs_a_short_one_only_where_the_action_is_the_unit():
    batch, _, _ = ragged(lengths=(7, 1), width=7, groups=(0, 1))
    for units, ratio in (("action", 7), ("trajectory", 1)):
        ones = torch.ones_like(batch.rewards) * batch.action_mask
        terms = squares_by_unit(ones, batch, units)
        alone = squares_by_unit(ones * torch.tensor([[1], [0]]), batch, units)
        assert float(alone.total / (terms.total - alone.total)) == pytest.approx(ratio)


@pytest.mark.parametrize("units", ["action", "trajectory"])
@pytest.mark.parametrize("loss", [losses.shiq, losses.shiq_init, losses.shiq_ms])
def test_without_fading_no_bit_changes_and_with_all_of_it_the_first_action_is_left(loss, units):
    batch, policy, reference = ragged()
    plain, unfaded, first, near = (
        loss(batch, policy, reference, beta=BETA, units=units, **fades)
        for fades in ({}, {"fade": 1.0, "fade_from": "turn"}, {"fade": 0.0}, {"fade": 1 - 1e-12})
    )
    assert torch.equal(plain.total, unfaded.total)
    assert torch.equal(plain.count, unfaded.count)
    assert plain.count.dtype == torch.int64
    assert_close(near.total / near.count, plain.total / plain.count)
    assert float(first.count) == int(batch.action_mask.any(-1).sum())
    if loss is losses.shiq:
        one_turn = replace(batch, action_index=1 + torch.arange(7).expand(12, 7))
        assert_close(first.total, losses.shiq_tk(one_turn, policy, reference, beta=BETA).total)
        turns = loss(batch, policy, reference, beta=BETA, units="action", fade=0.0, fade_from="turn")
        assert_close(turns.total, losses.shiq_tk(batch, policy, reference, beta=BETA).total)
        assert float(turns.count) == int(turn_starts(batch).sum())


def test_the_weights_of_a_trajectory_fall_from_its_first_action_or_begin_anew_with_each_turn():
    batch, _, _ = ragged(lengths=(6, 0, 3), width=6)
    index = torch.tensor([[2, 3, 6, 7, 8, 12], [0] * 6, [1, 3, 9, 40, 50, 51]])  # turns at 0, 2, 5; and everywhere
    batch = replace(batch, action_index=index)
    found = {way: fading_weights(batch, 0.5, way).tolist() for way in ("first", "turn")}
    assert found["first"] == [[1, 0.5, 0.25, 0.125, 0.0625, 0.03125], [0] * 6, [1, 0.5, 0.25, 0, 0, 0]]
    assert found["turn"] == [[1, 0.5, 1, 0.5, 0.25, 1], [0] * 6, [1, 1, 1, 0, 0, 0]]


def test_regularised_rewards_are_rewards_less_beta_log_ratios():
    batch, policy, reference = ragged()
    got = regularised_rewards(batch, policy, reference, BETA)
    for b, row in enumerate(rows_of(batch, policy, reference)):
        for t in row.actions:
            assert_close(got[b, t], row.r[t] - BETA * row.log_ratio(t))
        assert not got[b, len(row.r) :].any()


def test_a_turn_starts_where_the_environment_spoke_in_between():
    batch, _, _ = ragged(lengths=(6, 0, 3), width=6)
    index = torch.tensor([[2, 3, 6, 7, 8, 12], [0, 0, 0, 0, 0, 0], [1, 3, 9, 40, 50, 51]])
    starts = turn_starts(type(batch)(**{**vars(batch), "action_index": index}))
    first, second = [True, False, True, False, False, True], [True, True, True, False, False, False]
    assert starts.tolist() == [first, [False] * 6, second]


@pytest.mark.parametrize("name", ["shiq", "shiq_ms", "shiq_init", "shiq_tk", "shiq-0.9"])
def test_metrics_are_sums_and_counts_of_the_squared_residuals(name):
    batch, policy, reference = ragged(lengths=(1, 0, 1), width=2)  # one action a row: every residual is its own square
    terms = LOSSES[name][0](batch, policy, reference)
    residuals = [
        row.r[0] - BETA * row.log_ratio(0) - BETA * (row.v[0] if name == "shiq_init" else row.shift(0))
        for row in rows_of(batch, policy, reference)
        if row.r
    ]
    (mean, size), (absolute, same) = terms.metrics["residual_mean"], terms.metrics["residual_abs"]
    assert_close(mean, sum(residuals).detach())
    assert_close(absolute, sum(abs(x) for x in residuals).detach())
    assert int(size) == int(same) == 2
    assert not mean.requires_grad
    assert not absolute.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_take_no_gradient(name):
    batch, policy, reference = ragged()
    terms = LOSSES[name][0](batch, policy, reference)
    assert terms.total.requires_grad
    assert not [metric for metric, parts in terms.metrics.items() for x in parts if x.requires_grad]


@pytest.mark.parametrize("name", ["dpo", "ipo", "reward_model"])
def test_ties_are_a_share_of_all_pairs(name):
    """By hand from LEVELS of `naive`: 10 pairs, of which 2 are ties."""
    batch, policy, reference = ragged()
    assert [int(x) for x in LOSSES[name][0](batch, policy, reference).metrics["ties"]] == [2, 10]


def test_a_reward_model_is_right_where_the_better_completion_has_the_larger_score():
    batch, policy, reference = ragged()
    found = decided(rows_of(batch, policy, reference))
    right, count = losses.reward_model(batch, policy, None).metrics["accuracy"]
    expected = sum(int(better.value[-1] > worse.value[-1]) for better, worse in found)
    assert [int(right), int(count)] == [expected, len(found)]
    assert 0 < expected < len(found)


def test_metrics_of_the_turnwise_loss_count_turns_while_the_loss_counts_trajectories():
    batch, policy, reference = ragged(lengths=(6, 0, 3), width=6)
    index = torch.tensor([[2, 3, 6, 7, 8, 12], [0] * 6, [1, 3, 9, 40, 50, 51]])
    terms = LOSSES["shiq_tk"][0](type(batch)(**{**vars(batch), "action_index": index}), policy, reference)
    assert int(terms.count) == 2
    assert int(terms.metrics["residual_abs"][1]) == 6


def test_absolute_residuals_by_quarter_of_a_trajectory_are_those_of_its_actions_in_order():
    batch, policy, reference = ragged(lengths=(1, 3, 0, 6, 8), width=8)
    shown = losses.shiq_ms(batch, policy, reference, beta=BETA).metrics
    for quarter in range(4):
        inside = [
            abs(row.step(t)).item()
            for row in rows_of(batch, policy, reference)
            for t in row.actions
            if quarter <= 4 * t / len(row.r) < quarter + 1
        ]
        total, size = shown[f"residual_abs/quarter_{quarter + 1}"]
        assert_close(total.item(), sum(inside))
        assert int(size) == len(inside)


def test_a_trajectory_has_four_quarters():
    batch, policy, reference = ragged()
    shown = losses.shiq(batch, policy, reference, beta=BETA).metrics
    assert sorted(name for name in shown if "quarter" in name) == [f"residual_abs/quarter_{q}" for q in (1, 2, 3, 4)]


def test_quarters_of_the_turnwise_loss_are_quarters_of_its_turns():
    batch, policy, reference = ragged(lengths=(6,), width=6)
    index = torch.tensor([[2, 3, 6, 7, 8, 12]])  # turns begin at actions 0, 2 and 5
    turnwise = replace(batch, action_index=index)
    shown = losses.shiq_tk(turnwise, policy, reference, beta=BETA).metrics
    row = rows_of(turnwise, policy, reference)[0]
    for quarter, start in ((1, 0), (2, 2), (3, 5)):
        total, size = shown[f"residual_abs/quarter_{quarter}"]
        assert_close(total.item(), abs(row.return_to_go(start) - BETA * row.shift(start)).item())
        assert int(size) == 1
    assert int(shown["residual_abs/quarter_4"][1]) == 0
