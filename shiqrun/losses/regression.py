"""DRO: regress one trajectory's regularised return on a value of its prompt (Richemond et al., arXiv 2405.19107)."""

from typing import Literal

from torch import Tensor

from shiqrun.losses.pairs import group_means, regularised_returns
from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import masked, sequences
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories


@needs("rewards", group_if={"baseline": "group_mean"})
def dro(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    baseline: Literal["none", "group_mean"] = "none",
) -> LossTerms:
    """(R - beta sum_t D_t - V)^2 over trajectories, no factor 1/2 [S101]; unit: trajectory with an action.

    V = 0 (`none`, as the ShiQ paper runs it; biased unless rewards are centred) or the mean of R - beta sum D over the
    completions of the same prompt (`group_mean`, as in AGRO; unbiased, and detaching it would change nothing).
    """
    level = regularised_returns(batch, policy, reference, beta)
    residual = level - group_means(level, batch) if baseline == "group_mean" else level
    return _terms(residual.square(), residual, batch)


@needs("rewards", "value")
def dro_v(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """1/2 (U - V_phi(x))^2 + 1/(2 beta) (U - stop(V_phi(x)))^2, U = R - beta sum_t D_t [S25, S95]; unit: trajectory.

    The first term trains the value only (U is detached in it), the second the policy only. V_phi(x) is `policy.value`
    at the first action. Adam with separate parameters undoes the factor 1/beta: set the value's learning-rate ratio.

    Raises:
        ValueError: the policy has no value head.
    """
    if policy.value is None:
        raise ValueError("dro_v reads V(x) from policy.value, but the policy has no value head")
    value = masked(policy.value, batch)[:, :1].sum(-1)
    level = regularised_returns(batch, policy, reference, beta)
    fitted = (level.detach() - value).square() / 2
    pulled = (level - value.detach()).square() / (2 * beta)
    return _terms(fitted + pulled, level - value, batch)


def _terms(losses: Tensor, residual: Tensor, batch: Trajectories) -> LossTerms:
    there, count = batch.action_mask.any(-1), sequences(batch)
    shown = residual.detach().masked_fill(~there, 0)
    metrics = {"residual_mean": (shown.sum(), count), "residual_abs": (shown.abs().sum(), count)}
    return LossTerms(losses.masked_fill(~there, 0).sum(), count, metrics)
