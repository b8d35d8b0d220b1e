"""What must not change a loss: padding, what stands in it, the order of rows, the cut, rows without actions."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad
from torch.testing import assert_close

from shiqrun.losses.requirements import needs_of
from shiqrun.types import ActionScores, Trajectories
from tests.losses.naive import COMPARING, GROUPS, LENGTHS, LOSSES, gradients, numbers, ragged

EVERY_LOSS = pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=list(LOSSES))
ROWWISE = (
    "input_ids",
    "attention_mask",
    "action_index",
    "action_mask",
    "rewards",
    "group",
    "quantile",
    "behaviour_logp",
)


def leaves(scores, change):
    """The scores, changed, as new leaves."""
    return ActionScores(*(change(x).detach().requires_grad_() for x in numbers(scores)))


def changed(proximal, change):
    """The proximal scores, changed."""
    return ActionScores(*(change(x) for x in (proximal.logit, proximal.log_partition, proximal.value)))


def rows(batch, policy, reference, chosen):
    """Some rows of a problem, in the order of `chosen`."""
    parts = {name: getattr(batch, name)[chosen] for name in ROWWISE}
    proximal = changed(batch.proximal, lambda x: x[chosen])
    batch = Trajectories(**parts, kl_estimate=batch.kl_estimate, proximal=proximal)
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
        behaviour_logp=pad(batch.behaviour_logp, (0, 3), value=2.0),
        proximal=changed(batch.proximal, lambda x: pad(x, (0, 3), value=-3.0)),
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
        behaviour_logp=batch.behaviour_logp.masked_fill(empty, filling),
        proximal=changed(batch.proximal, lambda x: x.masked_fill(empty, filling)),
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
    order = [3, 0, 11, 8, 4, 10, 2, 9, 1, 6, 5, 7]
    assert_same(loss, problem, rows(*problem, order), lambda g: g[torch.tensor(order).argsort()])


@EVERY_LOSS
def test_the_numbers_of_the_groups_change_nothing_but_who_is_with_whom(loss):
    problem = batch, policy, reference = ragged()
    renumbered = torch.tensor([{4: -2, 7: 4, 1: 10**12, 9: 7, 3: 0}[group] for group in GROUPS])
    assert_same(loss, problem, (replace(batch, group=renumbered), policy, reference), lambda g: g)


@pytest.mark.parametrize("name", COMPARING)
def test_a_loss_that_compares_completions_sees_who_is_with_whom(name):
    batch, policy, reference = ragged()
    loss = COMPARING[name][0]
    other = replace(batch, group=torch.tensor([4, 7, 7, 1, 4, 7, 4, 1, 9, 4, 1, 3]))
    assert abs((loss(other, policy, reference).total - loss(batch, policy, reference).total).item()) > 1e-3


def of_groups(*numbers):
    """The rows that answer these prompts."""
    return [b for b, group in enumerate(GROUPS) if group in numbers]


ONE_BY_ONE = [[b] for b in range(len(GROUPS))]
AT_GROUPS = [of_groups(7), of_groups(9), of_groups(4, 3), of_groups(1)]
CUTS = {
    "whole": (list(LOSSES), [[*range(len(GROUPS))]]),
    "at groups": (list(LOSSES), AT_GROUPS),
    "one group each": (list(LOSSES), [of_groups(g) for g in (1, 3, 4, 7, 9)]),
    "one row each": ([name for name in LOSSES if name not in COMPARING], ONE_BY_ONE),
}


@pytest.mark.parametrize(("name", "cut"), [(name, cut) for names, cut in CUTS.values() for name in names])
def test_cutting_into_micro_batches_changes_nothing(name, cut):
    loss, (batch, policy, reference) = LOSSES[name][0], ragged()
    whole = loss(batch, policy, reference)
    problems = [rows(batch, policy, reference, chosen) for chosen in cut]
    parts = [loss(*problem) for problem in problems]
    assert_close(sum(part.total for part in parts), whole.total)
    assert sum(float(part.count) for part in parts) == pytest.approx(float(whole.count))
    for metric, (total, size) in whole.metrics.items():
        assert_close(sum(part.metrics[metric][0] for part in parts), total)
        assert sum(int(part.metrics[metric][1]) for part in parts) == int(size)
    order = torch.tensor([b for chosen in cut for b in chosen]).argsort()
    pieces = zip(*(gradients(part, problem[1]) for part, problem in zip(parts, problems, strict=True)), strict=True)
    assert_close([torch.cat(piece)[order] for piece in pieces], gradients(whole, policy))


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
    terms = loss(replace(batch, group=torch.zeros(2, dtype=torch.int64)), policy, reference)
    assert terms.total.item() == 0
    assert int(terms.count) == 0
    assert not any(gradient.any() for gradient in gradients(terms, policy))


@pytest.mark.parametrize("name", [name for name in COMPARING if "group" not in needs_of(COMPARING[name][0])])
def test_a_batch_without_any_pair_counts_nothing_and_has_a_gradient_of_zero(name):
    batch, policy, reference = ragged(lengths=(3, 0, 2), width=3)
    terms = COMPARING[name][0](batch, policy, reference)
    assert terms.total.item() == int(terms.count) == 0
    assert not any(gradient.any() for gradient in gradients(terms, policy))


@pytest.mark.parametrize(
    "name",
    [
        "copg",
        "copg-best_worst",
        "dpo",
        "dpo-smoothed",
        "ipo",
        "qrpo",
        "kto",
        "oreo-plain",
        "dro",
        "dro_group_mean",
        "dro_v",
        "grpo",
        "oapl",
        "rloo",
    ],
)
def test_a_shift_of_a_states_logits_is_not_seen_by_what_reads_log_ratios(name):
    batch, policy, reference = ragged()
    shift = torch.randn(batch.rewards.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shifted = ActionScores(policy.logit + shift, policy.log_partition + shift, policy.value)
    loss = LOSSES[name][0]
    assert_close(loss(batch, shifted, reference).total, loss(batch, policy, reference).total)


@pytest.mark.parametrize("name", ["shiq", "shiq-0.9", "shiq_init", "shiq_ms", "shiq_tk", "tbrm", "direct"])
def test_a_shift_of_a_states_logits_is_seen_by_what_reads_values(name):
    batch, policy, reference = ragged()
    loss = LOSSES[name][0]
    shift = torch.zeros_like(batch.rewards)
    shift[:, 0] = 0.5
    shifted = ActionScores(policy.logit + shift, policy.log_partition + shift, policy.value)
    assert abs((loss(batch, shifted, reference).total - loss(batch, policy, reference).total).item()) > 1e-2


def test_supervised_fine_tuning_reads_neither_rewards_nor_reference():
    batch, policy, reference = ragged()
    loss = LOSSES["sft"][0]
    unread = replace(batch, rewards=torch.full_like(batch.rewards, float("nan")))
    assert_close(loss(unread, policy, None).total, loss(batch, policy, reference).total)
