"""The anchor is a loss term that holds sampled logits at the reference's, against drift where there is no data.

Where data shows only some actions, the losses leave flat directions: raising W_{t+1} through the logits of tokens never
seen, and l(s_t,a_t) with it, changes no residual. The anchor is the prior Q = 0 for actions without data. It is this
project's own; no paper has it. docs/treasure.md says which settings to trust when.
"""

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import action_count
from shiqrun.types import ActionScores, LossTerms, Trajectories


@needs(units=action_count)
def anchor(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, *, kappa: float, beta: float
) -> LossTerms:
    """Return the anchor term: squared distances of the policy's logits from the reference's at sampled tokens.

        kappa beta^2 sum_t sum_j (l(s_t,b_j) - l_ref(s_t,b_j))^2    over the anchor tokens b_j != a_t

    Summed over every action and its anchor tokens; unit: action. docs/math.md, "Anchor".

    Args:
        batch: trajectories with `anchor_tokens` `[B, A, K]`.
        policy: the policy's scores, with `further`, its logits at the anchor tokens, nats; these take the gradient.
        reference: the frozen reference's scores, with `further` at the same tokens, nats.
        kappa: weight of the term, no unit.
        beta: KL temperature, reward units per nat.

    Raises:
        ValueError: the batch has no anchor tokens, or the scores lack their logits.
    """
    if batch.anchor_tokens is None or policy.further is None or reference.further is None:
        raise ValueError("the anchor needs anchor_tokens and both models' logits at them")
    taken = batch.input_ids.gather(1, batch.action_index)
    keep = batch.action_mask[..., None] & (batch.anchor_tokens != taken[..., None])
    gap = (policy.further - reference.further).masked_fill(~keep, 0)
    total, count = kappa * beta**2 * gap.square().sum(), action_count(batch)
    distance = (gap.detach().abs().sum(), keep.sum().to(gap.dtype))
    return LossTerms(total, count, {"anchor": (total.detach(), count), "anchor_gap": distance})
