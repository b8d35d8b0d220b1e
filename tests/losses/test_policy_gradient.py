"""PPO: its advantages and its loss by hand, where its gradient goes and where it does not."""

from dataclasses import replace
from functools import partial
from math import exp, inf, log, nan

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.losses.policy_gradient import advantages
from shiqrun.types import ActionScores
from tests.losses.naive import LENGTHS, gradients, ragged, scores
from tests.losses.trees import Tree

BETA = 0.7
PPO = partial(losses.ppo, beta=BETA)
SHAPES = [(0.95, 1.0), (1.0, 1.0), (0.0, 0.9), (0.6, 0.9), (1.0, 0.5)]
"""lambda and discount."""


def given(seed=0, spread=0.4):
    """(batch, policy, reference) on ragged rows, with proximal scores near the policy's and a behaviour near those."""
    batch, policy, reference = ragged(seed=seed)
    draw = torch.Generator().manual_seed(seed + 100)
    noise = spread * torch.randn(4, *batch.rewards.shape, dtype=torch.float64, generator=draw)
    near = (policy.logit, policy.log_partition, policy.value)
    proximal = ActionScores(*(x.detach() + e for x, e in zip(near, noise[:3], strict=True)))
    batch = replace(batch, proximal=proximal, behaviour_logp=proximal.logp + 2 * noise[3])
    return batch, policy, reference


# ------------------------------------------------------------------ by hand
def naive_advantages(batch, proximal, reference, gae_lam, discount):
    """From the definition: the sum over k of (discount lambda)^k times the k-th later temporal difference."""
    found = torch.zeros_like(batch.rewards)
    for b, length in enumerate(LENGTHS):
        v = [float(proximal.value[b, t]) for t in range(length)] + [0.0]
        earned = [
            float(batch.rewards[b, t]) - BETA * float((proximal.logp - reference.logp).detach()[b, t])
            for t in range(length)
        ]
        errors = [earned[t] + discount * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            found[b, t] = sum((discount * gae_lam) ** k * errors[t + k] for k in range(length - t))
    return found


@pytest.mark.parametrize(("gae_lam", "discount"), SHAPES)
def test_advantages_are_those_of_a_hand_loop(gae_lam, discount):
    batch, _, reference = given()
    found = advantages(batch, batch.proximal, reference, beta=BETA, gae_lam=gae_lam, discount=discount)
    assert_close(found, naive_advantages(batch, batch.proximal, reference, gae_lam, discount))
    assert not found.requires_grad


def test_with_lambda_one_the_values_target_is_the_regularised_return_to_go():
    batch, _, reference = given()
    found = advantages(batch, batch.proximal, reference, beta=BETA, gae_lam=1.0, discount=1.0) + batch.proximal.value
    for b, length in enumerate(LENGTHS):
        to_go = 0.0
        for t in reversed(range(length)):
            to_go += float(batch.rewards[b, t] - BETA * (batch.proximal.logp[b, t] - reference.logp[b, t]))
            assert float(found[b, t]) == pytest.approx(to_go)


def naive(batch, policy, reference, *, clip, gae_lam, discount, value_clip, importance_cap):
    """(sum over actions, metrics) by a loop over every action."""
    advantage = naive_advantages(batch, batch.proximal, reference, gae_lam, discount)
    total, found = 0.0, dict.fromkeys(("clip_fraction", "approx_kl", "importance_mean", "importance_capped"), 0.0)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            a, old = float(advantage[b, t]), float(batch.proximal.value[b, t])
            exact = exp(float(batch.proximal.logp[b, t] - batch.behaviour_logp[b, t]))
            weight = min(exact, importance_cap)
            rho = torch.exp(policy.logp[b, t] - batch.proximal.logp[b, t])
            total = total - weight * min(rho * a, min(max(rho, 1 - clip), 1 + clip) * a)
            value, target = policy.value[b, t], a + old
            error = (value - target) ** 2
            if value_clip is not None:
                error = max(error, (old + min(max(value - old, -value_clip), value_clip) - target) ** 2)
            total = total + error / 2
            found["clip_fraction"] += float(rho) > 1 + clip if a > 0 else float(rho) < 1 - clip
            found["approx_kl"] += float(rho) - 1 - log(float(rho))
            found["importance_mean"] += exact
            found["importance_capped"] += exact > importance_cap
    return total, found


@pytest.mark.parametrize("value_clip", [None, 0.2])
@pytest.mark.parametrize(("clip", "gae_lam", "discount", "cap"), [(0.2, 0.95, 1.0, 2.0), (0.1, 0.6, 0.9, 1.1)])
def test_loss_gradient_and_metrics_are_those_of_a_loop_over_actions(clip, gae_lam, discount, cap, value_clip):
    options = {"clip": clip, "gae_lam": gae_lam, "discount": discount, "importance_cap": cap, "value_clip": value_clip}
    batch, policy, reference = given()
    terms, (total, metrics) = PPO(batch, policy, reference, **options), naive(batch, policy, reference, **options)
    assert int(terms.count) == sum(LENGTHS)
    assert float(terms.total) == pytest.approx(float(total))
    for name, number in metrics.items():
        assert float(terms.metrics[name][0]) == pytest.approx(number), name
        assert number > 0, f"{name} tells nothing here"
    assert_close(
        gradients(terms, policy)[:3],
        list(torch.autograd.grad(total, (policy.logit, policy.log_partition, policy.value))),
    )
    parts = terms.metrics["policy_loss"][0] + terms.metrics["value_loss"][0]
    assert float(parts) == pytest.approx(float(terms.total))


@pytest.mark.parametrize("filling", [nan, inf, 1e300])
def test_nothing_in_the_padding_reaches_value_gradient_or_metrics(filling):
    batch, policy, reference = given()
    empty = ~batch.action_mask

    def filled(x):
        return x.detach().masked_fill(empty, filling).requires_grad_()

    def all_filled(s):
        return ActionScores(filled(s.logit), filled(s.log_partition), filled(s.value))

    other = replace(
        batch,
        rewards=batch.rewards.masked_fill(empty, filling),
        behaviour_logp=batch.behaviour_logp.masked_fill(empty, filling),
        proximal=all_filled(batch.proximal).detach(),
    )
    same = all_filled(policy)
    options = {"value_clip": 0.2}
    one, two = PPO(batch, policy, reference, **options), PPO(other, same, all_filled(reference), **options)
    assert_close((two.total, two.count, two.metrics), (one.total, one.count, one.metrics))
    found = gradients(two, same)
    assert_close(found, gradients(one, policy)[:3])
    assert not any(g[empty].any() for g in found)


@pytest.mark.parametrize("width", [0, 2])
def test_a_batch_without_any_action_counts_nothing_and_is_zero(width):
    batch, policy, reference = ragged(lengths=(0, 0), width=width)
    terms = PPO(replace(batch, behaviour_logp=torch.zeros(2, width)), policy, reference)
    assert float(terms.total) == int(terms.count) == 0
    assert not any(g.any() for g in gradients(terms, policy))


# ------------------------------------------------------------------ what is absent
def test_a_batch_without_proximal_scores_is_one_whose_policy_has_not_moved():
    batch, policy, reference = given()
    first, again = replace(batch, proximal=None), replace(batch, proximal=policy.detach())
    one, two = PPO(first, policy, reference), PPO(again, policy, reference)
    assert_close((one.total, one.metrics), (two.total, two.metrics))
    assert_close(gradients(one, policy), gradients(two, policy))
    assert float(one.metrics["approx_kl"][0]) == float(one.metrics["clip_fraction"][0]) == 0


def test_what_it_cannot_do_without_is_named():
    batch, policy, reference = given()
    bare = ActionScores(policy.logit, policy.log_partition)
    with pytest.raises(ValueError, match=r"policy\.value"):
        PPO(batch, bare, reference)
    with pytest.raises(ValueError, match=r"policy\.value"):
        PPO(replace(batch, proximal=bare), policy, reference)
    with pytest.raises(ValueError, match="behaviour_logp"):
        PPO(replace(batch, behaviour_logp=None), policy, reference)


# ------------------------------------------------------------------ clipping
def one_action(ratio, advantage, **options):
    """d loss / d log pi of one action with this ratio and advantage, of weight 1."""
    tree = Tree(vocabulary=2, horizon=1)
    old = scores((1, 1), torch.Generator().manual_seed(0)).detach()
    batch = replace(
        tree.trajectories(tree.paths[:1]), proximal=replace(old, value=torch.zeros(1, 1, dtype=torch.float64))
    )
    batch = replace(batch, behaviour_logp=old.logp, rewards=torch.full((1, 1), advantage, dtype=torch.float64))
    logit = (old.logit + log(ratio)).requires_grad_()
    policy = ActionScores(logit, old.log_partition, batch.proximal.value)
    (slope,) = torch.autograd.grad(PPO(batch, policy, old, **options).total, logit)
    return float(slope)


@pytest.mark.parametrize("size", [0.5, 3.0])
@pytest.mark.parametrize(
    ("ratio", "sign", "kept"),
    [
        (1.0, 1, True),
        (1.0, -1, True),
        (1.19, 1, True),
        (1.21, 1, False),  # it has gained enough
        (1.21, -1, True),  # it went the wrong way
        (0.81, -1, True),
        (0.79, -1, False),
        (0.79, 1, True),
        (5.0, -1, True),
        (5.0, 1, False),
        (0.01, -1, False),
        (0.01, 1, True),
    ],
)
def test_clipping_takes_the_gradient_of_what_has_gained_enough_and_of_nothing_else(ratio, sign, kept, size):
    expected = -ratio * sign * size if kept else 0.0
    assert one_action(ratio, sign * size) == pytest.approx(expected)


def test_the_width_of_clipping_is_its_argument():
    assert one_action(1.3, 1.0, clip=0.4) == pytest.approx(-1.3)
    assert one_action(1.3, 1.0, clip=0.2) == 0
    assert one_action(0.65, -1.0, clip=0.4) == pytest.approx(0.65)
    assert one_action(0.55, -1.0, clip=0.4) == 0


def test_clipping_takes_the_values_gradient_where_it_has_come_far_enough_and_nowhere_else():
    batch, policy, reference = given()
    advantage = advantages(batch, batch.proximal, reference, beta=BETA, gae_lam=0.95, discount=1.0)
    moved = (policy.value - batch.proximal.value).detach()
    # Beyond the clip towards the target, the error of the clipped value is the larger one and has no gradient
    done = (
        batch.action_mask
        & (moved.abs() > 0.1)
        & ((moved - advantage).abs() < (moved.clamp(-0.1, 0.1) - advantage).abs())
    )
    slope = gradients(PPO(batch, policy, reference, value_clip=0.1), policy)[2]
    assert 0 < int(done.sum()) < sum(LENGTHS)
    assert torch.equal(slope != 0, batch.action_mask & ~done)
