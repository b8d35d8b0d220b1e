"""This module computes the metrics that every method logs, and checks that policy and reference start equal."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shiqrun.errors import TrainingError
from shiqrun.losses.residual import action_count, log_ratios, partition_shifts, zero_padding
from shiqrun.training.step.sums import Sums
from shiqrun.types import ActionScores, Trajectories


class ScoredBatch(NamedTuple):
    """A `ScoredBatch` is a batch with the scores of the policy and of the reference, None without a reference."""

    batch: Trajectories
    policy: ActionScores
    reference: ActionScores | None


STEP_ZERO_TOLERANCE = {None: (1e-5, 1e-4), torch.bfloat16: (5e-3, 5e-2)}
"""By autocast dtype, the nats of |mean log-ratio| and of mean |log-ratio| that rounding explains while policy and
reference are the same model: cached scores were computed in batches of other shapes."""


BY_SOURCE = ("loss", "reward", "logratio_mean", "accuracy", "rewards/accuracies")
"""Metrics that are also logged by source, and by part of a mixture."""


def by_source(metrics: Sums, batch: Trajectories, sources: Sequence[str]) -> Sums:
    """Return the metrics of `BY_SOURCE` as `NAME/SOURCE` for every source; zeros where the batch is of another.

    Args:
        metrics: of the batch.
        batch: trajectories of one source, and in a mixture of data sets of one part.
        sources: names of sources and of parts.
    """
    found: Sums = {}
    for source in sources:
        here = source in (batch.source, batch.part)
        found |= {
            f"{n}/{source}": (total * here, count * here) for n, (total, count) in metrics.items() if n in BY_SOURCE
        }
    return found


@torch.no_grad()
def batch_metrics(scored: ScoredBatch, beta: float, sources: Sequence[str] = ()) -> Sums:
    """Return the metrics of a batch that do not depend on the loss, as sums and counts.

    They are the reward, log-ratios (nats), the shifted value beta W (reward units), and, where
    the policy gave them, entropy (nats) and the share of actions that are the most likely token. For samples of the
    policy, `acting_gap` is how far the sampler's log-probabilities are from the scored ones (nats).

    Args:
        scored: a batch with its scores.
        beta: KL temperature, reward units per nat; where it is 0 (a method without one), the shift is in nats.
        sources: those of a step that mixes several.
    """
    batch, policy, reference = scored
    actions = action_count(batch)
    metrics: Sums = {}
    if policy.entropy is not None and policy.hits is not None:
        metrics["entropy"] = (policy.entropy.sum(), actions)
        metrics["mean_token_accuracy"] = (policy.hits.sum(), actions)
    sources = sources if batch.source in sources else ()  # a validation batch has none of them
    metrics["reward"] = _reward(batch)
    if sources:
        sampled, gap = torch.zeros_like(actions), torch.zeros_like(policy.logit[:0].sum())
        if batch.acting_logp is not None and batch.source == "online":
            sampled, gap = actions, zero_padding(policy.logp - batch.acting_logp, batch).abs().sum()
        metrics["acting_gap"] = (gap, sampled)
    if reference is not None:
        ratio = log_ratios(batch, policy, reference)
        metrics["logratio_mean"] = (ratio.sum(), actions)
        metrics["logratio_abs"] = (ratio.abs().sum(), actions)
        shift = (beta or 1.0) * partition_shifts(batch, policy, reference)
        metrics["shifted_value"] = (shift.sum(), actions)
    return metrics


def _reward(batch: Trajectories) -> tuple[Tensor, Tensor]:
    """Return the sum of returns and the number of trajectories that have one."""
    earned = returns_before_offset(batch)
    known = batch.action_mask.any(-1) & ~earned.isnan()  # `sft` takes data without rewards
    return earned.masked_fill(~known, 0).sum(), known.sum()


def returns_before_offset(batch: Trajectories) -> Tensor:
    """Return each trajectory's return as the data has it, before the reward offset, `[B]`, reward units.

    It is 0 where a trajectory has no action.
    """
    total = batch.rewards.masked_fill(~batch.action_mask, 0).sum(-1)
    return total if batch.offset is None else total + batch.offset.masked_fill(~batch.action_mask.any(-1), 0)


def check_step_zero(
    numbers: Mapping[str, tuple[float, float]], autocast: torch.dtype | None, max_gap: float | None = None
) -> None:
    """Check that before the first step the policy equals the reference, and that the sampler equals the policy.

    A run that starts otherwise would report the KL of another problem.

    Args:
        numbers: sums and counts of `batch_metrics`, by name.
        autocast: dtype of the policy's body, None for float32.
        max_gap: nats a token by which the sampler may differ from the policy; None for what rounding explains.

    Raises:
        TrainingError: log-probabilities differ by more than rounding explains.
    """
    mean, most = STEP_ZERO_TOLERANCE[autocast]
    max_gap = most if max_gap is None else max_gap
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
    if sampled and not gap / sampled <= max_gap:
        raise TrainingError(
            f"samples are not of the policy that is scored: their log-probabilities differ by {gap / sampled:.2g} nats "
            "a token before the first step, more than rounding explains"
        )
