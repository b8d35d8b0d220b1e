"""CoPG: contrastive policy gradient, the square that two completions of one prompt share."""

import torch

from shiqrun.losses.pairs import Pairing, pair_rows, regularised_returns
from shiqrun.losses.requirements import needs
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories


@needs("rewards", "pairs")
def copg(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive, pairing: Pairing = "all"
) -> LossTerms:
    """((R - beta sum D) - (R' - beta sum D'))^2 over unordered pairs, no factor 1/2; unit: pair.

    Flet-Berliac et al., arXiv 2406.19185 [S24]; over several turns R is the return of the trajectory and D runs over
    action tokens only [S D.5]. The gradient flows through both completions. Ties stay: they say that both regularised
    returns must be equal.
    """
    first, second = pair_rows(batch, pairing)
    level = regularised_returns(batch, policy, reference, beta)
    residual = level[first] - level[second]
    count = torch.full_like(residual, 1.0).sum()
    shown = residual.detach()
    metrics = {"residual_mean": (shown.sum(), count), "residual_abs": (shown.abs().sum(), count)}
    return LossTerms(residual.square().sum(), count, metrics)
