"""How the losses are one family: each is another one in another form, and the proofs of the papers in numbers."""

from dataclasses import replace
from functools import partial
from math import exp, log

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.types import ActionScores
from tests.losses.naive import gradients, numbers, ragged
from tests.losses.rows import BETA, rows_of
from tests.losses.trees import Tree

COPG, DPO, DRO_V = (partial(loss, beta=BETA) for loss in (losses.copg, losses.dpo, losses.dro_v))
GROUP_MEAN = partial(losses.dro, beta=BETA, baseline="group_mean")


@pytest.mark.parametrize("seed", range(6))
def test_dpo_is_the_logistic_of_copgs_difference_at_zero_reward(seed):
    batch, policy, reference = ragged(lengths=(4, 2), width=4, seed=seed, groups=(3, 3))
    one, other = rows_of(batch, policy, reference)
    sign = 1 if one.total_reward() > other.total_reward() else -1
    margin = sign * BETA * (one.total_ratio() - other.total_ratio()).item()
    silent = COPG(replace(batch, rewards=torch.zeros_like(batch.rewards)), policy, reference)
    preferred = DPO(batch, policy, reference)
    assert int(preferred.count) == 1
    assert silent.total.item() == pytest.approx(margin**2)
    assert preferred.total.item() == pytest.approx(log(1 + exp(-margin)))
    factor = -1 / (1 + exp(margin)) / (2 * margin)  # d log(1 + exp(-m)) = -s(-m) dm, d m^2 = 2 m dm
    assert_close(gradients(preferred, policy), [factor * g for g in gradients(silent, policy)])


def test_ipo_is_copg_on_a_pair_whose_winner_earns_half_a_unit_more():
    batch, policy, reference = ragged(lengths=(4, 2), width=4, groups=(3, 3))
    one, other = rows_of(batch, policy, reference)
    verdict = torch.zeros_like(batch.rewards)
    verdict[0, 3] = 0.5 if one.total_reward() > other.total_reward() else -0.5
    squared, contrast = (
        losses.ipo(batch, policy, reference, beta=BETA),
        COPG(replace(batch, rewards=verdict), policy, reference),
    )
    assert int(squared.count) == 1
    assert_close(squared.total, contrast.total / BETA**2)
    assert_close(gradients(squared, policy), [g / BETA**2 for g in gradients(contrast, policy)])


@pytest.mark.parametrize("members", [2, 3, 4])
def test_dro_with_the_groups_mean_is_copg_on_all_pairs_over_the_size_of_the_group(members):
    """sum_i (u_i - mean)^2 = 1/n sum_{i<j} (u_i - u_j)^2: half of CoPG, gradient and all, for groups of two."""
    batch, policy, reference = ragged(lengths=(4, 2, 0, 3, 1)[: members + 1], width=4, groups=(3,) * (members + 1))
    rows = int(batch.action_mask.any(-1).sum())
    assert rows == members
    square, contrast = GROUP_MEAN(batch, policy, reference), COPG(batch, policy, reference)
    assert_close(square.total, contrast.total / members)
    assert_close(gradients(square, policy), [g / members for g in gradients(contrast, policy)])


def test_holding_the_groups_mean_still_changes_no_gradient():
    batch, policy, reference = ragged()
    rows = [row for row in rows_of(batch, policy, reference) if row.r]
    total = 0.0
    for row in rows:
        members = [other.return_to_go(0) for other in rows if other.group == row.group]
        total = total + (row.return_to_go(0) - (sum(members) / len(members)).detach()) ** 2
    expected = torch.autograd.grad(total, numbers(policy), materialize_grads=True)
    assert_close(gradients(GROUP_MEAN(batch, policy, reference), policy), list(expected))


def test_soft_q_of_the_reparametrised_logits_is_the_direct_loss():
    """docs/math.md, "Direct" (theorem 2 of arXiv 2505.11081).

    q = beta (l - log pi_ref) is the soft Q-function of the policy softmax(l).
    """
    tree = Tree(vocabulary=4, horizon=3)
    reference, table = tree.table(), tree.table().requires_grad_()
    q = BETA * (table - reference.log_softmax(-1))
    soft_value = BETA * (reference.softmax(-1) * (q / BETA).exp()).sum(-1).log()  # by whole rows
    assert_close((reference.log_softmax(-1) + q / BETA).log_softmax(-1), table.log_softmax(-1))
    value = tree.scores(soft_value[:, None].expand_as(table)).logit  # of the state, at every action
    batch, frozen = tree.trajectories(), tree.scores(reference)
    earlier = losses.soft_q(batch, tree.scores(q), frozen, beta=BETA, soft_value=value)
    later = losses.direct(batch, tree.scores(table), frozen, beta=BETA)
    assert later.total.item() > 1
    assert_close(earlier.total, later.total)
    assert_close(*(torch.autograd.grad(terms.total, table, retain_graph=True) for terms in (earlier, later)))


def test_shaping_the_reward_with_the_references_partition_turns_direct_into_shiq_ms():
    """docs/math.md, "ShiQ/ms" (theorem 3 of arXiv 2505.11081).

    r_t + beta v_ref(s_t) - beta v_ref(s_{t+1}), the potential being zero after the last action.
    """
    batch, policy, reference = ragged()
    shaped = batch.rewards.clone()
    for b, length in enumerate(batch.action_mask.sum(-1)):
        for t in range(length):
            following = reference.log_partition[b, t + 1].item() if t + 1 < length else 0.0
            shaped[b, t] += BETA * (reference.log_partition[b, t].item() - following)
    direct = losses.direct(replace(batch, rewards=shaped), policy, reference, beta=BETA)
    shifted = losses.shiq_ms(batch, policy, reference, beta=BETA)
    assert_close(direct.total, shifted.total)
    assert_close(gradients(direct, policy), gradients(shifted, policy))


def test_dro_v_with_the_groups_mean_for_a_value_is_the_policy_gradient_of_dro_with_that_mean():
    batch, policy, reference = ragged()
    means = torch.zeros_like(batch.rewards)
    rows = rows_of(batch, policy, reference)
    for b, row in enumerate(rows):
        members = [other.return_to_go(0).item() for other in rows if other.r and other.group == row.group]
        means[b] = sum(members) / max(len(members), 1)
    valued = ActionScores(policy.logit, policy.log_partition, means.requires_grad_())
    found = gradients(DRO_V(batch, valued, reference), valued)[:2]
    assert_close(found, [g / (2 * BETA) for g in gradients(GROUP_MEAN(batch, policy, reference), policy)[:2]])


def test_the_value_network_learns_from_half_the_square_and_the_policy_from_its_own_share_of_it():
    """Against central differences of the two scalars, each in its own numbers."""
    batch, policy, reference = ragged(lengths=(3, 0, 2), width=3)
    found = gradients(DRO_V(batch, policy, reference), policy)[:3]
    for gradient, place, weight in zip(found, range(3), (1 / (2 * BETA), 1 / (2 * BETA), 1 / 2), strict=True):
        for b in range(3):
            for t in range(3):
                ends = [squared(batch, policy, reference, place, (b, t), step) for step in (1e-4, -1e-4)]
                expected = weight * (ends[0] - ends[1]) / 2e-4
                assert gradient[b, t].item() == pytest.approx(expected, abs=1e-8)
    assert all(float(gradient.abs().max()) > 0.1 for gradient in found)


def squared(batch, policy, reference, place, entry, step):
    """sum (R - beta sum D - V)^2 by hand, with one number of the policy moved."""
    moved = [part.detach().clone() for part in numbers(policy)]
    moved[place][entry] += step
    rows = rows_of(batch, ActionScores(*moved), reference)
    return sum((row.return_to_go(0) - row.value[0]).item() ** 2 for row in rows if row.r)


def test_the_reference_and_the_rewards_take_no_gradient_in_what_a_value_or_score_learns():
    batch, policy, reference = ragged()
    (toward_value,) = torch.autograd.grad(DRO_V(batch, policy, reference).total, policy.value)
    first = torch.zeros_like(toward_value, dtype=torch.bool)
    first[:, 0] = batch.action_mask[:, 0]
    assert bool((toward_value != 0).eq(first).all())
    logit, partition, toward_score, _ = gradients(losses.reward_model(batch, policy, None), policy)
    last = torch.arange(toward_score.shape[1]) == batch.action_mask.sum(-1, keepdim=True) - 1
    assert not logit.any()
    assert not partition.any()
    assert not toward_score[~last].any()
    assert toward_score[last].any()


@pytest.mark.parametrize("loss", [DRO_V, losses.reward_model], ids=["dro_v", "reward_model"])
def test_a_loss_that_reads_values_names_itself_to_a_policy_without_a_value_head(loss):
    batch, policy, reference = ragged()
    name = "dro_v" if loss is DRO_V else "reward_model"
    with pytest.raises(ValueError, match=f"{name}.*no value head"):
        loss(batch, ActionScores(policy.logit, policy.log_partition), reference)
