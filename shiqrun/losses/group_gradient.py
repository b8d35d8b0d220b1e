"""GRPO and RLOO follow the policy gradient of the regularised return, with the prompt's other completions as baseline.

GRPO: Shao et al. 2024, arXiv 2402.03300; the wider upper clip and the mean over tokens: Yu et al. 2025, arXiv
2503.14476. RLOO: Ahmadian et al. 2024, arXiv 2402.14740. Both are PPO (`policy_gradient.py`, with the same mu and
pi_prox) without a value function: the advantage of a completion is its regularised return U = R - beta sum D less a
mean over the completions of its prompt, and the same at all of its actions.

The KL stands in the return, as in PPO and in RLOO's paper, and not in the loss, as in GRPO's: so both solve the problem
of all other methods here, with the same beta. At its optimum all U of a prompt are equal, every advantage is zero, and
no scale of a group moves the fixed point. GRPO's paper adds a KL estimate to the loss, beside advantages that are
divided by the group's standard deviation; that fixed point is another one (docs/math.md, "GRPO").
"""

from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from shiqrun.losses.pairs import ROUNDING, group_means, group_sizes, regularised_returns, returns
from shiqrun.losses.policy_gradient import clipped, log_importance, update_metrics
from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import Units, count_by_unit, log_ratios, trajectory_count, zero_padding
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories

LowClip = Annotated[float, Gt(0), Lt(1)]
"""A hyperparameter between 0 and 1: how far below 1 a ratio may go and still gain by it."""
Scale = Literal["group", "none"]
"""What advantages are divided by: the standard deviation of the prompt's completions, or nothing."""
SMALLEST_DEVIATION = 1e-4
"""Added to the standard deviation by which advantages are divided, reward units."""


@needs("rewards", "group", "behaviour", "proximal", units=count_by_unit)
def grpo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    clip_low: LowClip = 0.2,
    clip_high: Positive = 0.2,
    scale: Scale = "group",
    units: Units = "action",
    importance_cap: Positive = 2.0,
) -> LossTerms:
    """Return the GRPO loss: the clipped policy gradient with advantages in standard deviations of the group.

        sum_t -w_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A),    A = (U - mean U) / (sd U + 1e-4)

    Summed over every action, or averaged over each trajectory's; unit: action, or trajectory. docs/math.md, "GRPO".
    rho = pi / pi_prox, w = min(pi_prox / mu, importance_cap), and U is the regularised return of pi_prox. Gradients
    flow through rho alone. A completion that is alone with its prompt has advantage 0. Where `batch.proximal` is None,
    the policy is its own pi_prox, and nothing is clipped.

    Args:
        batch: trajectories with rewards, reward units, and `behaviour_logp`, log mu, nats.
        policy: the policy's scores, nats.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        clip_low: no unit: how far below 1 rho may go and still gain by it.
        clip_high: no unit: how far above 1; larger than clip_low: "clip-higher".
        scale: "group" divides by the standard deviation (over n - 1) of the prompt's U, "none" leaves reward units.
        units: "action" weighs all actions of a step the same, "trajectory" all trajectories.
        importance_cap: no unit: largest w.

    Raises:
        ValueError: the batch has no `behaviour_logp`.
    """
    proximal = (batch.proximal or policy).detach()
    advantage = group_advantages(batch, proximal, reference, beta)
    if scale == "group":
        advantage = advantage / (_deviations(advantage, batch) + SMALLEST_DEVIATION)
    return _by_action(batch, policy, proximal, advantage, (clip_low, clip_high), units, importance_cap)


@needs("rewards", "group", "behaviour", "proximal", units=count_by_unit)
def rloo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    clip_low: LowClip = 0.2,
    clip_high: Positive = 0.2,
    units: Units = "trajectory",
    importance_cap: Positive = 2.0,
) -> LossTerms:
    """Return the RLOO loss: the clipped policy gradient with the mean of the prompt's other completions as baseline.

        sum over trajectories of -w min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),    A = U - mean of the others

    docs/math.md, "RLOO". A whole completion is one action: rho and w are products over its tokens. With
    `units="action"` every token is an action, with rho and w of its own and the same A, and the unit is the action.
    U is the regularised return of pi_prox, and gradients flow through rho alone. On fresh samples the gradient of the
    first update is the policy gradient without bias. A completion that is alone with its prompt has advantage 0.

    Args:
        batch: trajectories with rewards, reward units, and `behaviour_logp`, log mu, nats.
        policy: the policy's scores, nats.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        clip_low: no unit: how far below 1 rho may go and still gain by it.
        clip_high: no unit: how far above 1.
        units: what is clipped and counted: "trajectory", a whole completion, or "action", every token.
        importance_cap: no unit: largest w.

    Raises:
        ValueError: the batch has no `behaviour_logp`.
    """
    proximal = (batch.proximal or policy).detach()
    size = group_sizes(batch)
    advantage = group_advantages(batch, proximal, reference, beta) * size / (size - 1).clamp(min=1)
    clips = (clip_low, clip_high)
    if units == "action":
        return _by_action(batch, policy, proximal, advantage, clips, units, importance_cap)
    change = log_ratios(batch, policy, proximal).sum(-1)
    weight = log_importance(batch, proximal).sum(-1).exp()
    gain = weight.clamp(max=importance_cap) * clipped(change.exp(), advantage, *clips)
    acts, count = batch.action_mask.any(-1), trajectory_count(batch)
    values = _metrics(change, advantage, clips, gain, weight, importance_cap)
    metrics = {name: (x.detach().masked_fill(~acts, 0).sum(), count) for name, x in values.items()}
    return LossTerms(-gain.sum(), count, metrics | _share_without_contrast(batch))


@torch.no_grad()
def group_advantages(batch: Trajectories, proximal: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """Return every trajectory's regularised return less the mean of its prompt's, `[B]`, reward units; no gradient.

    It is exactly 0 for a trajectory without actions and for one that is alone with its prompt.
    """
    level = regularised_returns(batch, proximal, reference, beta)
    return (level - group_means(level, batch)).masked_fill(~batch.action_mask.any(-1), 0)


def _deviations(centred: Tensor, batch: Trajectories) -> Tensor:
    """Return the standard deviation, over n - 1, of each row's group, `[B]`, of values whose group means are zero."""
    size = group_sizes(batch)
    return (group_means(centred.square(), batch) * size / (size - 1).clamp(min=1)).sqrt()


def _by_action(
    batch: Trajectories,
    policy: ActionScores,
    proximal: ActionScores,
    advantage: Tensor,
    clips: tuple[float, float],
    units: Units,
    importance_cap: float,
) -> LossTerms:
    """Return the clipped loss of ratios of single actions, each with its trajectory's advantage `[B]`."""
    every = zero_padding(advantage[:, None].expand_as(batch.rewards), batch)
    change, weight = log_ratios(batch, policy, proximal), log_importance(batch, proximal).exp()
    gain = weight.clamp(max=importance_cap) * clipped(change.exp(), every, *clips)
    actions, total = batch.action_mask.sum(), -gain.sum()
    if units == "trajectory":
        total = -(gain.sum(-1) / batch.action_mask.sum(-1).clamp(min=1)).sum()
    values = _metrics(change, every, clips, gain, weight, importance_cap)
    metrics = {name: (zero_padding(x.detach(), batch).sum(), actions) for name, x in values.items()}
    return LossTerms(total, count_by_unit(batch, units), metrics | _share_without_contrast(batch))


def _metrics(
    change: Tensor, advantage: Tensor, clips: tuple[float, float], gain: Tensor, weight: Tensor, cap: float
) -> dict[str, Tensor]:
    """Return elementwise metrics of an update, of actions or of trajectories."""
    own = {"policy_loss": -gain, "importance_mean": weight, "importance_capped": weight > cap}
    return update_metrics(change, advantage, *clips) | own


@torch.no_grad()
def _share_without_contrast(batch: Trajectories) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the share of trajectories whose prompt's completions all return the same, as a metric."""
    level = returns(batch)
    spread = group_means((level - group_means(level, batch)).abs(), batch)
    same = (spread <= ROUNDING * group_means(level.abs(), batch)) & batch.action_mask.any(-1)
    return {"same_return": (same.sum(), trajectory_count(batch))}
