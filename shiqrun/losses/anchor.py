"""The anchor: hold a few sampled logits at the reference's, so that nothing drifts to tokens that no data shows.

Where data shows only some actions, the losses leave flat directions: raising W_{t+1} through logits of tokens never
seen, and l(s_t,a_t) with it, changes no residual. The anchor is the prior q = 0 for actions without data. Ours; no
paper has it. When to trust which setting: docs/treasure.md.
"""

import torch

from shiqrun.types import ActionScores, LossTerms, Trajectories


def anchor(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, *, kappa: float, beta: float
) -> LossTerms:
    """kappa beta^2 sum_t sum_j (l(s_t,b_j) - l_ref(s_t,b_j))^2 over the anchor tokens b_j != a_t; unit: action.

    Raises:
        ValueError: the batch has no anchor tokens, or the scores lack their logits.
    """
    if batch.anchor_tokens is None or policy.further is None or reference.further is None:
        raise ValueError("the anchor needs anchor_tokens and both models' logits at them")
    taken = batch.input_ids.gather(1, batch.action_index)
    keep = batch.action_mask[..., None] & (batch.anchor_tokens != taken[..., None])
    gap = (policy.further - reference.further).masked_fill(~keep, 0)
    total, count = kappa * beta**2 * gap.square().sum(), batch.action_mask.sum()
    shown = torch.stack([gap.detach().abs().sum(), keep.sum().to(gap.dtype)])
    return LossTerms(total, count, {"anchor": (total.detach(), count), "anchor_gap": (shown[0], shown[1])})
