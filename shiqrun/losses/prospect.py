"""KTO learns from single completions that are good or bad, by how far their log-ratios are from an estimate of the KL.

Ethayarajh et al. 2024, "KTO: Model alignment as prospect theoretic optimization", arXiv 2402.01306.
"""

import torch
from torch import Tensor

from shiqrun.losses.pairs import ROUNDING, returns
from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import log_ratios, trajectory_count, zero_padding
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories


@needs("rewards", "kl_estimate", units=trajectory_count)
def kto(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    threshold: float = 0.0,
    desirable_weight: Positive = 1.0,
    undesirable_weight: Positive = 1.0,
) -> LossTerms:
    """Return the KTO loss: for a desirable completion the sigmoid that it falls short of, for others the reverse.

        sum over trajectories of  lambda_D (1 - sigmoid(beta (sum_t D_t - z)))    where R > threshold
                                  lambda_U (1 - sigmoid(beta (z - sum_t D_t)))    elsewhere

    Unit: trajectory with an action. Ethayarajh et al. 2024, arXiv 2402.01306, equation 8; docs/math.md, "KTO". z >= 0
    is the step's KL estimate, from prompts with completions of other prompts; no gradient flows through it.

    Args:
        batch: trajectories with rewards, which only say who is desirable, and with `kl_estimate`.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: steepness of the sigmoids, per nat.
        threshold: reward units; a trajectory is desirable if its return is larger.
        desirable_weight: lambda_D, no unit.
        undesirable_weight: lambda_U, no unit.

    Raises:
        ValueError: the batch has no KL estimate.
    """
    if batch.kl_estimate is None:
        raise ValueError("kto reads the step's KL estimate, but the batch has none")
    acts, desirable = batch.action_mask.any(-1), _desirable(batch, threshold)
    ratios = log_ratios(batch, policy, reference).sum(-1)
    above = beta * (ratios - batch.kl_estimate.detach())
    gain = desirable_weight * torch.sigmoid(-above)  # 1 - sigmoid(x) is sigmoid(-x)
    loss = torch.where(desirable, gain, undesirable_weight * torch.sigmoid(above))
    metrics = _metrics(batch, policy, beta * ratios, desirable & acts, ~desirable & acts)
    return LossTerms(loss.masked_fill(~acts, 0).sum(), trajectory_count(batch), metrics)


def _desirable(batch: Trajectories, threshold: float) -> Tensor:
    """Return which trajectories have a return above the threshold, `[B]` bool; what rounding alone lifts has not."""
    size = zero_padding(batch.rewards, batch).abs().sum(-1) + abs(threshold)
    return returns(batch) - threshold > ROUNDING * size


@torch.no_grad()
def _metrics(
    batch: Trajectories, policy: ActionScores, implicit: Tensor, desirable: Tensor, undesirable: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return TRL's metrics of both kinds of trajectories, and the KL estimate, each as (sum, count), `[]`."""
    logps, count = zero_padding(policy.logp, batch).sum(-1), trajectory_count(batch)
    assert batch.kl_estimate is not None
    found = {"kl_estimate": (batch.kl_estimate * count, count), "desirable": (desirable.sum(), count)}
    for name, kind in (("chosen", desirable), ("rejected", undesirable)):
        found[f"rewards/{name}"] = (implicit.masked_fill(~kind, 0).sum(), kind.sum())
        found[f"logps/{name}"] = (logps.masked_fill(~kind, 0).sum(), kind.sum())
    return found
