"""QRPO regresses log-ratios on the quantile of a return among the reference's, with an exact partition function.

Matrenok et al. 2025, "Quantile Reward Policy Optimization", arXiv 2507.08068. A reward's quantile under the reference
is uniform on [0, 1] where returns do not tie, so that the soft value of "the quantile is the reward" is one number for
all prompts.
"""

import math

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import log_ratios, trajectory_count
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories


@needs("rewards", "quantile", units=trajectory_count)
def qrpo(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """Return the QRPO loss: squares of the return's quantile less its soft value and the scaled log-ratio.

        sum over trajectories of (q - beta log Z - beta sum_t D_t)^2,    Z = beta (exp(1 / beta) - 1)

    Unit: trajectory with an action. Matrenok et al. 2025, arXiv 2507.08068; docs/math.md, "QRPO". It is `spo` with the
    quantile as the return and beta log Z as the prompt value.

    Args:
        batch: trajectories with `quantile` q, the share of the reference's returns at or below the row's; no unit.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, quantiles (from 0 to 1) per nat.

    Raises:
        ValueError: the batch has no quantiles.
    """
    if batch.quantile is None:
        raise ValueError("qrpo reads the quantile of each return, but the batch has none")
    acts, count = batch.action_mask.any(-1), trajectory_count(batch)
    ratios = log_ratios(batch, policy, reference).sum(-1)
    quantile = batch.quantile.to(ratios.dtype)
    residual = (quantile - uniform_value(beta) - beta * ratios).masked_fill(~acts, 0)
    detached = residual.detach()
    metrics = {
        "residual_mean": (detached.sum(), count),
        "residual_abs": (detached.abs().sum(), count),
        "quantile": (quantile.masked_fill(~acts, 0).sum(), count),
    }
    return LossTerms(residual.square().sum(), count, metrics)


def uniform_value(beta: float) -> float:
    """Return beta log E[exp(q / beta)] of a uniform q: beta log(beta (exp(1 / beta) - 1)), without overflow.

    The paper's code leaves out the -1, which adds 4.5e-6 at beta = 0.1 and 0.46 at beta = 1.
    """
    return 1 + beta * (math.log(beta) + math.log1p(-math.exp(-1 / beta)))
