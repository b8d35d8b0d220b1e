"""PPO follows the clipped policy gradient of the KL-regularised return, with a learned value function.

Schulman et al. 2017, arXiv 1707.06347. Three policies stand behind one batch. mu is the distribution that the batch was
sampled from: older weights perhaps, at a temperature, with top-p. pi_prox is the policy when the batch came to be
trained on, and pi is the policy now. Clipping holds pi near pi_prox, and a weight w = pi_prox / mu corrects for mu,
because holding pi near mu would hold it back (Hilton et al. 2021, arXiv 2110.00641, the decoupled objective). w
corrects the choice of one action, but neither how often mu comes to its state nor what mu does afterwards: on single
actions the policy's gradient is exact wherever mu has probability, on longer trajectories it is as old as mu is.

The reward of an action is r_t - beta D_t of pi_prox, so the fixed point is the optimum of the same regularised
objective, with the same beta, as that of every other method here.

The unit is the action and not the trajectory. Divided by trajectories, the gradient of the return would point the same
way with another length, which Adam undoes; but a mean per action keeps `trainer.grad_clip` and the value's error on one
scale while answers grow. Two usual parts are missing. The value has its own parameters, optimiser group and clipping,
so a coefficient of its loss would do nothing that `algo.value_lr_ratio` does not. And advantages are not normalised:
that takes a mean over the whole step, and their scale, too, is Adam's to undo.
"""

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor
from torch.nn.functional import pad

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import action_count, log_ratios, regularised_rewards, suffix_sum, zero_padding
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories, UnitInterval


@needs("rewards", "value", "behaviour", "proximal", units=action_count)
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
    """Return the PPO loss: the clipped policy gradient of the regularised return, and the squared error of the value.

        sum_t -w_t min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t) + 1/2 (V_t - V_prox,t - A_t)^2

    Summed over every action; unit: action. arXiv 1707.06347, equation 7, with the weights of arXiv 2110.00641;
    docs/math.md, "PPO". rho = pi / pi_prox, w = min(pi_prox / mu, importance_cap), and A are the `advantages` of
    pi_prox. Gradients flow through rho and V alone; the value's error has no weight. Where `batch.proximal` is None, in
    the first update on a batch, the policy is its own pi_prox: rho is 1, and the gradient is the policy gradient.

    Args:
        batch: trajectories with rewards, reward units, and `behaviour_logp`, log mu, nats.
        policy: the policy's scores, nats, with `value`, reward units.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        clip: no unit: how far rho may go from 1 and still gain by it.
        gae_lam: no unit: lambda of generalised advantage estimation; 1: no bias from V, 0: least variance.
        discount: no unit: of later rewards, per action; below 1 the fixed point is not the regularised optimum.
        value_clip: reward units: how far V may go from V_prox and still gain by it; None: anywhere.
        importance_cap: no unit: largest w, so that an action which mu hardly ever takes moves no step alone.

    Raises:
        ValueError: the policy or its proximal scores have no value, or the batch no `behaviour_logp`.
    """
    proximal = (batch.proximal or policy).detach()
    advantage = advantages(batch, proximal, reference, beta=beta, gae_lam=gae_lam, discount=discount)
    weight, change = log_importance(batch, proximal).exp(), log_ratios(batch, policy, proximal)
    gain = weight.clamp(max=importance_cap) * clipped(change.exp(), advantage, clip, clip)
    error = _value_errors(batch, policy, proximal, advantage, value_clip)
    values = update_metrics(change, advantage, clip, clip) | {
        "policy_loss": -gain,
        "value_loss": error,
        "importance_mean": weight,
        "importance_capped": weight > importance_cap,
        "value_mean": state_values(policy),
    }
    count = action_count(batch)
    metrics = {name: (zero_padding(x.detach(), batch).sum(), count) for name, x in values.items()}
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
    """Return the generalised advantages of the regularised reward, `[B, A]`, reward units, zero in the padding.

        A_t = e_t + discount gae_lam A_{t+1},    e_t = r_t - beta D_t + discount V_{t+1} - V_t

    Schulman et al. 2015, arXiv 1506.02438, equation 16. No gradient. V is 0 after the last action, also of a trajectory
    that was cut off: its return is what it earned.

    Raises:
        ValueError: the proximal scores have no value.
    """
    value = zero_padding(state_values(proximal), batch)
    following = pad(value[:, 1:], (0, 1)) if value.shape[1] else value
    errors = regularised_rewards(batch, proximal, reference, beta) + discount * following - value
    return suffix_sum(errors, decay=discount * gae_lam)


@torch.no_grad()
def log_importance(batch: Trajectories, proximal: ActionScores) -> Tensor:
    """Return the logarithms of the weights pi_prox(a_t|s_t) / mu(a_t|s_t), `[B, A]`, nats, 0 in the padding.

    No gradient.

    Raises:
        ValueError: the batch has no log-probabilities of the distribution it was sampled from.
    """
    if batch.behaviour_logp is None:
        raise ValueError("the loss reads the distribution sampled from in behaviour_logp, but the batch has none")
    return zero_padding(proximal.logp - batch.behaviour_logp, batch)


def state_values(scores: ActionScores) -> Tensor:
    """Return the values of the actions' states V(s_t), `[B, A]`, reward units.

    Raises:
        ValueError: the policy has no value head.
    """
    if scores.value is None:
        raise ValueError("ppo reads V(s) from policy.value, but the policy has no value head")
    return scores.value


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Return the clipped objective min(rho A, clip(rho, 1 - low, 1 + high) A), elementwise, in the unit of A."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def _value_errors(
    batch: Trajectories, policy: ActionScores, proximal: ActionScores, advantage: Tensor, value_clip: float | None
) -> Tensor:
    """Return the squared errors of the value, 1/2 (V - V_prox - A)^2, `[B, A]`; clipped, the larger of two."""
    moved = zero_padding(state_values(policy) - state_values(proximal), batch)
    error = (moved - advantage).square()
    if value_clip is not None:
        error = torch.maximum(error, (moved.clamp(-value_clip, value_clip) - advantage).square())
    return error / 2


@torch.no_grad()
def update_metrics(change: Tensor, advantage: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """Return elementwise metrics of an update: whether clipped, an estimate of KL(pi_prox || pi) in nats, and |A|."""
    ratio = change.exp()
    return {
        "clip_fraction": ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low)),
        "approx_kl": torch.expm1(change) - change,
        "advantage_abs": advantage.abs(),
    }
