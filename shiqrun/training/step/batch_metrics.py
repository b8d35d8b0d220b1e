"""What every method shows of a batch, beside the metrics of its loss."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shiqrun.errors import TrainingError
from shiqrun.losses.residual import log_ratios, masked, partition_shifts
from shiqrun.training.step.sums import Tally
from shiqrun.types import ActionScores, Trajectories


class Scored(NamedTuple):
    """A batch of one source with the policy's scores and the frozen reference's, None without one."""

    batch: Trajectories
    policy: ActionScores
    reference: ActionScores | None


STEP_ZERO_TOLERANCE = {None: (1e-5, 1e-4), torch.bfloat16: (5e-3, 5e-2)}
"""Nats of |mean log-ratio| and mean |log-ratio| that rounding explains while policy and reference are the same model:
cached scores were computed in batches of other shapes."""


@torch.no_grad()
def measured(scored: Scored, beta: float, sources: Sequence[str] = ()) -> Tally:
    """Sums and counts by name.

    Args:
        scored: see `Scored`.
        beta: reward units per nat.
        sources: of a step that mixes several, whose rewards are told apart.
    """
    batch, policy, reference = scored
    actions, tally = batch.action_mask.sum(), Tally()
    if policy.entropy is not None and policy.hits is not None:
        tally["entropy"] = (policy.entropy.sum(), actions)
        tally["mean_token_accuracy"] = (policy.hits.sum(), actions)
    earned = returns(batch)
    known = batch.action_mask.any(-1) & ~earned.isnan()  # `sft` takes data without rewards
    reward = (earned.masked_fill(~known, 0).sum(), known.sum())
    tally["reward"] = reward
    sources = sources if batch.source in sources else ()  # not those of validation
    for name in sources:
        tally[f"reward/{name}"] = tuple(x * (batch.source == name) for x in reward)  # type: ignore[assignment]
    if sources:
        sampled, gap = torch.zeros_like(actions), torch.zeros_like(policy.logit[:0].sum())
        if batch.acting_logp is not None and batch.source == "online":
            sampled, gap = actions, masked(policy.logp - batch.acting_logp, batch).abs().sum()
        tally["acting_gap"] = (gap, sampled)
    if reference is not None:
        ratio = log_ratios(batch, policy, reference)
        tally["logratio_mean"] = (ratio.sum(), actions)
        tally["logratio_abs"] = (ratio.abs().sum(), actions)
        shift = (beta or 1.0) * partition_shifts(batch, policy, reference)
        tally["shifted_value"] = (shift.sum(), actions)
    return tally


def returns(batch: Trajectories) -> Tensor:
    """`[B]`, each trajectory's return as the data has it, without the reward offset; 0 where it has no action."""
    total = batch.rewards.masked_fill(~batch.action_mask, 0).sum(-1)
    return total if batch.offset is None else total + batch.offset.masked_fill(~batch.action_mask.any(-1), 0)


def expect_equality(numbers: Mapping[str, tuple[float, float]], autocast: torch.dtype | None) -> None:
    """Nothing, if before the first step the policy is the reference, and samples are of what is scored.

    A run that starts otherwise would report another problem's KL.

    Args:
        numbers: sums and counts by name.
        autocast: of the policy's body.

    Raises:
        TrainingError: they differ by more than rounding explains.
    """
    mean, most = STEP_ZERO_TOLERANCE[autocast]
    if "logratio_abs" in numbers:
        count = max(numbers["logratio_abs"][1], 1.0)
        found = [abs(numbers[name][0]) / count for name in ("logratio_mean", "logratio_abs")]
        if not (found[0] <= mean and found[1] <= most):
            raise TrainingError(
                f"policy and reference differ before the first step: mean log-ratio {found[0]:.2g}, mean |log-ratio| "
                f"{found[1]:.2g} nats, more than rounding explains. The cached scores or the model's randomness are "
                "wrong; try algo.reference=frozen, or another cache_dir"
            )
    gap, sampled = numbers.get("acting_gap", (0.0, 0.0))
    if sampled and not gap / sampled <= most:
        raise TrainingError(
            f"samples are not of the policy that is scored: their log-probabilities differ by {gap / sampled:.2g} nats "
            "a token before the first step, more than rounding explains"
        )
