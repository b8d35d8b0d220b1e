"""DRO, DRO-V and OAPL regress a trajectory's KL-regularised return on a value of its prompt.

DRO: Richemond et al. 2024, "Offline regularised reinforcement learning for large language models alignment",
arXiv 2405.19107. OAPL: Ritter et al. 2026, "LLMs can learn to reason via off-policy RL", arXiv 2602.19362.
"""

from typing import Literal

import torch
from torch import Tensor

from shiqrun.losses.pairs import group_means, group_soft_means, regularised_returns, returns
from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import action_count, trajectory_count, zero_padding
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories


@needs("rewards", group_if={"baseline": "group_mean"}, units=trajectory_count)
def dro(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    baseline: Literal["none", "group_mean"] = "none",
) -> LossTerms:
    """Return the DRO loss on single trajectories: squares of the regularised return less a baseline.

        sum over trajectories of (R - beta sum_t D_t - V)^2,    without a factor 1/2

    Unit: trajectory with an action. Equation 101 of arXiv 2505.11081; docs/math.md, "DRO".

    Args:
        batch: trajectories with rewards, reward units; with "group_mean", rows with equal `group` answer one prompt.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        baseline: "none" is V = 0, as the ShiQ paper runs it, biased unless rewards are centred. "group_mean" is the
            mean of R - beta sum_t D_t over the completions of the prompt, as in AGRO (arXiv 2503.19612), unbiased;
            the gradient flows through it, and detaching it would change nothing.
    """
    level = regularised_returns(batch, policy, reference, beta)
    residual = level - group_means(level, batch) if baseline == "group_mean" else level
    return _sum_over_trajectories(residual.square(), residual, batch)


@needs("rewards", "value", units=trajectory_count)
def dro_v(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """Return the DRO-V loss: a learned value of the prompt is fitted to the regularised return, the policy to it.

        sum over trajectories of 1/2 (stop(U) - V(x))^2 + 1/(2 beta) (U - stop(V(x)))^2,    U = R - beta sum_t D_t

    Unit: trajectory with an action. Equations 25 and 95 of arXiv 2505.11081; docs/math.md, "DRO-V". `stop` detaches:
    the first term trains the value alone, the second the policy alone. Adam with separate parameters undoes the
    factor 1/beta, so `algo.value_lr_ratio` sets the ratio of learning rates.

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores, nats, with gradient; V(x) is `policy.value` at the first action, reward units.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.

    Raises:
        ValueError: the policy has no value head.
    """
    if policy.value is None:
        raise ValueError("dro_v reads V(x) from policy.value, but the policy has no value head")
    value = zero_padding(policy.value, batch)[:, :1].sum(-1)
    level = regularised_returns(batch, policy, reference, beta)
    fitted = (level.detach() - value).square() / 2
    pulled = (level - value.detach()).square() / (2 * beta)
    return _sum_over_trajectories(fitted + pulled, level - value, batch)


@needs("rewards", "group", "behaviour", "sampler_reference", units=trajectory_count)
def oapl(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    group_beta: Positive | None = None,
) -> LossTerms:
    """Return the OAPL loss: the log-ratio to the lagged sampler is regressed on the group's optimal advantage.

        sum over trajectories of (R - V - beta sum_t D_t)^2,    V = group_beta log mean exp(R / group_beta)

    The mean is over the completions of the prompt, the own one included. Unit: trajectory with an action. docs/math.md,
    "OAPL". The reference is the policy that sampled the completions, as it was then, so that V estimates the soft value
    of this reference. Gradients flow through D alone.

    Args:
        batch: trajectories with rewards, reward units, and `behaviour_logp`, with which the reference is compared.
        policy: the policy's scores, nats, with gradient.
        reference: the scores of the policy that sampled, nats.
        beta: KL temperature of the regression, reward units per nat.
        group_beta: KL temperature of V, reward units per nat; None for beta.

    Raises:
        ValueError: the batch has no `behaviour_logp`.
    """
    if batch.behaviour_logp is None:
        raise ValueError("oapl compares its reference with behaviour_logp, but the batch has none")
    with torch.no_grad():
        value = group_soft_means(returns(batch), batch, group_beta or beta)
        gap = zero_padding(reference.logp - batch.behaviour_logp, batch).abs().sum()
    residual = regularised_returns(batch, policy, reference, beta) - value
    terms = _sum_over_trajectories(residual.square(), residual, batch)
    own = {"group_value": (value.sum(), terms.count), "sampler_gap": (gap, action_count(batch))}
    return LossTerms(terms.total, terms.count, terms.metrics | own)


def _sum_over_trajectories(losses: Tensor, residual: Tensor, batch: Trajectories) -> LossTerms:
    """Return the sum of `losses` `[B]` over trajectories with an action, with metrics of their residuals `[B]`."""
    acts, count = batch.action_mask.any(-1), trajectory_count(batch)
    detached = residual.detach().masked_fill(~acts, 0)
    metrics = {"residual_mean": (detached.sum(), count), "residual_abs": (detached.abs().sum(), count)}
    return LossTerms(losses.masked_fill(~acts, 0).sum(), count, metrics)
