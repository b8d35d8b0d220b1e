"""CoPG, contrastive policy gradient, squares the difference of two completions' regularised returns."""

import torch

from shiqrun.losses.pairs import Pairing, pair_count, pair_rows, regularised_returns
from shiqrun.losses.requirements import needs
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories


@needs("rewards", "pairs", units=pair_count)
def copg(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive, pairing: Pairing = "all"
) -> LossTerms:
    """Return the CoPG loss: squared differences of the regularised returns of two completions of one prompt.

        sum over unordered pairs of ((R - beta sum_t D_t) - (R' - beta sum_t D'_t))^2,    without a factor 1/2

    Unit: pair. Flet-Berliac et al. 2024, arXiv 2406.19185, as in equation 24 of arXiv 2505.11081 and its appendix D.5
    for several turns; docs/math.md, "CoPG". Over several turns R is the return of the trajectory and D is summed over
    action tokens only. The gradient flows through both completions. Ties are kept: they say that the two regularised
    returns must be equal.

    Args:
        batch: trajectories with rewards, reward units; rows with equal `group` answer the same prompt.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        pairing: "all" pairs of a prompt's completions, or only its best with its worst ("best_worst").
    """
    first, second = pair_rows(batch, pairing)
    level = regularised_returns(batch, policy, reference, beta)
    residual = level[first] - level[second]
    count, detached = torch.full_like(first, 1).sum(), residual.detach()
    metrics = {"residual_mean": (detached.sum(), count), "residual_abs": (detached.abs().sum(), count)}
    return LossTerms(residual.square().sum(), count, metrics)
