"""The KL estimate of an optimiser step: the mean log-ratio of mismatched trajectories, over micro-batches and ranks."""

from collections.abc import Callable, Iterable, Set
from dataclasses import replace

import torch

from shiqrun.losses.residual import log_ratios, trajectory_count
from shiqrun.training.step.sums import Sums
from shiqrun.types import ActionScores, Trajectories

Scored = Callable[[Trajectories], ActionScores]


@torch.no_grad()
def with_kl_estimate(
    batches: Iterable[Trajectories],
    needs: Set[str],
    policy: Scored,
    reference: Scored | None,
    add: Callable[[list[Sums]], Sums],
) -> Iterable[Trajectories]:
    """Return the batches with the KL estimate of all of them, where the loss reads one, and else as they are.

        z = max(0, mean over mismatched trajectories of sum_t D_t)

    All batches are scored before any gets the estimate, so that it is one number for a whole step, however the step is
    cut. Where there are no mismatched trajectories, there is no estimate.

    Args:
        batches: of a step, or of a validation split.
        needs: what the method's loss reads, see `needs_of`.
        policy: returns the policy's scores.
        reference: returns the reference's.
        add: sums over batches and ranks.
    """
    if "kl_estimate" not in needs or reference is None:
        return batches
    batches, parts = list(batches), list[Sums]()
    for joined in (batch.mismatched for batch in batches):
        if joined is not None:
            ratios = log_ratios(joined, policy(joined), reference(joined))
            parts.append({"kl": (ratios.sum(), trajectory_count(joined))})
    if not parts:
        return batches
    total, count = add(parts)["kl"]
    estimate = (total / count.clamp(min=1)).clamp(min=0).to(batches[0].rewards.dtype)
    return [replace(batch, kl_estimate=estimate).with_layout(batch.layout) for batch in batches]
