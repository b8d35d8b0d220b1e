"""What must not change a loss: padding, what stands in it, the order of rows, the cut, rows without actions."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad
from torch.testing import assert_close

from shiqrun.types import ActionScores, Trajectories
from tests.losses.naive import LENGTHS, LOSSES, gradients, ragged

EVERY_LOSS = pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=list(LOSSES))
ROWWISE = ("input_ids", "attention_mask", "action_index", "action_mask", "rewards", "group")


def leaves(scores, change):
    """The scores, changed, as new leaves."""
    return ActionScores(*(change(x).detach().requires_grad_() for x in (scores.logit, scores.log_partition)))


def rows(batch, policy, reference, chosen):
    """Some rows of a problem, in the order of `chosen`."""
    batch = Trajectories(**{name: getattr(batch, name)[chosen] for name in ROWWISE})
    return batch, leaves(policy, lambda x: x[chosen]), leaves(reference, lambda x: x[chosen])


def assert_same(loss, problem, other, places):
    """Equal sum, count, metrics and gradients; `places(g)` are the entries of `other` that the first one has."""
    terms, expected = loss(*other), loss(*problem)
    assert_close(terms.total, expected.total)
    assert_close((terms.count, terms.metrics), (expected.count, expected.metrics))
    assert_close([places(g) for g in gradients(terms, other[1])], gradients(expected, problem[1]))


@EVERY_LOSS
def test_padding_width_changes_nothing(loss):
    problem = batch, policy, reference = ragged()
    wider = replace(
        batch,
        action_index=pad(batch.action_index, (0, 3)),
        action_mask=pad(batch.action_mask, (0, 3)),
        rewards=pad(batch.rewards, (0, 3), value=5.0),
    )
    more = [leaves(scores, lambda x: pad(x, (0, 3), value=-4.0)) for scores in (policy, reference)]
    assert_same(loss, problem, (wider, *more), lambda g: g[:, :7])


@EVERY_LOSS
@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 1e300])
def test_nothing_in_the_padding_reaches_value_or_gradient(loss, filling):
    problem = batch, policy, reference = ragged()
    empty = ~batch.action_mask
    filled = replace(
        batch,
        rewards=batch.rewards.masked_fill(empty, filling),
        action_index=batch.action_index.masked_fill(empty, -9),
    )
    others = [leaves(scores, lambda x: x.masked_fill(empty, filling)) for scores in (policy, reference)]
    assert_same(loss, problem, (filled, *others), lambda g: g)


@EVERY_LOSS
def test_padding_holds_no_gradient(loss):
    batch, policy, reference = ragged()
    for gradient in gradients(loss(batch, policy, reference), policy):
        assert not gradient[~batch.action_mask].any()


@EVERY_LOSS
def test_row_order_changes_nothing(loss):
    problem = ragged()
    order = [3, 0, 4, 2, 1]
    assert_same(loss, problem, rows(*problem, order), lambda g: g[torch.tensor(order).argsort()])


@EVERY_LOSS
def test_cutting_into_micro_batches_changes_neither_sum_nor_count(loss):
    problem = ragged()
    whole = loss(*problem)
    for cut in ([[0, 1, 2, 3, 4]], [[0, 1], [2], [3, 4]], [[0], [1], [2], [3], [4]]):
        parts = [loss(*rows(*problem, chosen)) for chosen in cut]
        assert_close(sum(part.total for part in parts), whole.total)
        assert sum(int(part.count) for part in parts) == int(whole.count)
        for name, (total, size) in whole.metrics.items():
            assert_close(sum(part.metrics[name][0] for part in parts), total)
            assert sum(int(part.metrics[name][1]) for part in parts) == int(size)


@EVERY_LOSS
def test_a_row_without_actions_changes_nothing(loss):
    problem = ragged()
    kept = [b for b, length in enumerate(LENGTHS) if length]
    assert len(kept) < len(LENGTHS)
    assert_same(loss, rows(*problem, kept), problem, lambda g: g[kept])


@EVERY_LOSS
@pytest.mark.parametrize("width", [0, 2])
def test_a_batch_without_any_action_counts_nothing_and_is_zero(loss, width):
    batch, policy, reference = ragged(lengths=(0, 0), width=width)
    terms = loss(batch, policy, reference)
    assert terms.total.item() == 0
    assert int(terms.count) == 0
    assert not any(gradient.any() for gradient in gradients(terms, policy))


def test_supervised_fine_tuning_reads_neither_rewards_nor_reference():
    batch, policy, reference = ragged()
    loss = LOSSES["sft"][0]
    unread = replace(batch, rewards=torch.full_like(batch.rewards, float("nan")))
    assert_close(loss(unread, policy, None).total, loss(batch, policy, reference).total)
