"""Supervised fine-tuning trains the policy that every other method starts from, by the negative log-likelihood."""

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import action_count, zero_padding
from shiqrun.types import ActionScores, LossTerms, Trajectories


@needs(units=action_count)
def sft(batch: Trajectories, policy: ActionScores, reference: ActionScores | None) -> LossTerms:
    """Return the loss of supervised fine-tuning: the negative log-likelihood -sum_t log pi(a_t|s_t).

    Nats, summed over every action; unit: action. docs/math.md, "SFT".

    Args:
        batch: trajectories; rewards are not read.
        policy: the policy's scores, nats, with gradient.
        reference: not read, may be None.
    """
    nll = -zero_padding(policy.logp, batch)
    return LossTerms(nll.sum(), action_count(batch))
