"""PPO: the clipped policy gradient of the regularised return, with a value (Schulman et al., arXiv 1707.06347).

Three policies stand behind one batch. mu is the distribution that it was sampled from: older weights perhaps, at a
temperature, with top-p. pi_prox is the policy when the batch came to be trained on, pi the policy now. pi is held near
pi_prox, and a weight w = pi_prox / mu corrects for mu: holding pi near mu would hold it back (Hilton et al., "Batch
size-invariance for policy optimization", arXiv 2110.00641, the decoupled objective). w corrects the choice of one
action, neither how often mu comes to its state nor what mu does afterwards: on single actions the policy's gradient is
exact wherever mu looked, on longer trajectories it is as old as mu is.

The reward of an action is r_t - beta D_t of pi_prox, so that the fixed point is the optimum of the same regularised
objective, with the same beta, as that of every other method here.

The unit is the action and not the trajectory. Divided by trajectories, the gradient of the return would point the same
way with another length, which Adam undoes; but a mean per action keeps `trainer.grad_clip` and the value's error on one
scale while answers grow. Two usual parts are missing. The value has its own parameters, optimiser group and clipping,
so that a coefficient of its loss would do nothing that `algo.value_lr_ratio` does not. And advantages are not
normalised: that takes a mean over the whole step, and their scale, too, is Adam's to undo.
"""

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor
from torch.nn.functional import pad

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import log_ratios, masked, regularised_rewards, suffix_sum
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories, UnitInterval


@needs("rewards", "value", "behaviour", "proximal")
def ppo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    clip: Annotated[float, Gt(0), Lt(1)] = 0.2,
    gae_lam: UnitInterval = 0.95,
    discount: UnitInterval = 1.0,
    value_clip: Positive | None = None,
    importance_cap: Positive = 2.0,
) -> LossTerms:
    """sum_t -w_t min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t) + (V_t - V_prox,t - A_t)^2 / 2; unit: action.

    rho = pi / pi_prox and V alone have gradients. A are `advantages`, w = min(pi_prox / mu, importance_cap). Where
    `batch.proximal` is None, in the first update on a batch, the policy is its own: rho is 1, and there the gradient is
    the policy gradient. No weight is on the value's error.

    Args:
        batch: with `behaviour_logp`, log mu.
        policy: with a value.
        reference: of the regularisation.
        beta: reward units per nat.
        clip: no unit: how far rho may go from 1 and still gain by it.
        gae_lam: no unit: lambda of the advantages; 1: no bias from V, 0: least variance.
        discount: no unit: of later rewards, per action; below 1 the fixed point is not the regularised optimum.
        value_clip: reward units: how far V may go from V_prox and still gain by it; None: anywhere.
        importance_cap: no unit: largest w, so that an action which mu hardly ever takes moves no step alone.

    Raises:
        ValueError: the policy or its proximal scores have no value, or the batch no `behaviour_logp`.
    """
    proximal = (batch.proximal or policy).fixed()
    advantage = advantages(batch, proximal, reference, beta=beta, gae_lam=gae_lam, discount=discount)
    weight, change = importance(batch, proximal), log_ratios(batch, policy, proximal)
    gain = weight.clamp(max=importance_cap) * _clipped(change.exp(), advantage, clip)
    error = _value_errors(batch, policy, proximal, advantage, value_clip)
    shown = _shown(change, advantage, clip) | {
        "policy_loss": -gain,
        "value_loss": error,
        "importance_mean": weight,
        "importance_capped": weight > importance_cap,
        "value_mean": value_of(policy),
    }
    count = batch.action_mask.sum()
    metrics = {name: (masked(x.detach(), batch).sum(), count) for name, x in shown.items()}
    return LossTerms((error - gain).sum(), count, metrics)


@torch.no_grad()
def advantages(
    batch: Trajectories,
    proximal: ActionScores,
    reference: ActionScores,
    *,
    beta: float,
    gae_lam: float,
    discount: float,
) -> Tensor:
    """A_t = e_t + discount gae_lam A_{t+1}, e_t = r_t - beta D_t + discount V_{t+1} - V_t, `[B, A]`, reward units.

    Generalised advantages (Schulman et al., arXiv 1506.02438, Eq. 16), zero where there is no action. V is 0 after the
    last action, also of a trajectory that was cut off: its return is what it got.
    """
    value = masked(value_of(proximal), batch)
    following = pad(value[:, 1:], (0, 1)) if value.shape[1] else value
    errors = regularised_rewards(batch, proximal, reference, beta) + discount * following - value
    return suffix_sum(errors, decay=discount * gae_lam)


@torch.no_grad()
def importance(batch: Trajectories, proximal: ActionScores) -> Tensor:
    """pi_prox(a_t|s_t) / mu(a_t|s_t), `[B, A]`, 1 where there is no action.

    Raises:
        ValueError: the batch does not say how it was sampled.
    """
    if batch.behaviour_logp is None:
        raise ValueError("ppo reads the distribution that was sampled from in behaviour_logp, but the batch has none")
    return masked(proximal.logp - batch.behaviour_logp, batch).exp()


def value_of(scores: ActionScores) -> Tensor:
    """V(s_t), `[B, A]`, reward units.

    Raises:
        ValueError: the policy has no value head.
    """
    if scores.value is None:
        raise ValueError("ppo reads V(s) from policy.value, but the policy has no value head")
    return scores.value


def _clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The smaller one of rho A with rho as it is and with rho near 1, elementwise."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def _value_errors(
    batch: Trajectories, policy: ActionScores, proximal: ActionScores, advantage: Tensor, value_clip: float | None
) -> Tensor:
    """1/2 (V - A - V_prox)^2, `[B, A]`; clipped, the larger one of V's and of V's within `value_clip` of V_prox."""
    moved = masked(value_of(policy) - value_of(proximal), batch)
    error = (moved - advantage).square()
    if value_clip is not None:
        error = torch.maximum(error, (moved.clamp(-value_clip, value_clip) - advantage).square())
    return error / 2


@torch.no_grad()
def _shown(change: Tensor, advantage: Tensor, clip: float) -> dict[str, Tensor]:
    """Of an update, elementwise: whether clipping has taken the gradient, KL(pi_prox || pi) in nats, and |A|."""
    ratio = change.exp()
    return {
        "clip_fraction": ((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip)),
        "approx_kl": torch.expm1(change) - change,
        "advantage_abs": advantage.abs(),
    }
