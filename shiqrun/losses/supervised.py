"""Supervised fine-tuning: the starting point that every other method refines."""

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import masked
from shiqrun.types import ActionScores, LossTerms, Trajectories


@needs()
def sft(batch: Trajectories, policy: ActionScores, reference: ActionScores | None) -> LossTerms:
    """-sum_t log pi(a_t|s_t) over every action, nats; unit: action. Neither rewards nor the reference are read."""
    nll = -masked(policy.logp, batch)
    return LossTerms(nll.sum(), batch.action_mask.sum())
