"""ShiQ and its ablations: squared Bellman residuals of the logits read as Q-values (Clavier et al., arXiv 2505.11081).

Each loss is summed over its units and never averaged; the training step divides once, by the units of the whole
optimiser step. Gradients flow through both of the policy's numbers and through no number of the reference.
"""

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import (
    partition_shifts,
    path_residuals,
    sequences,
    squares,
    step_residuals,
    suffix_sum,
    turn_starts,
)
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories, UnitInterval


@needs("rewards")
def shiq(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive, lam: UnitInterval = 1.0
) -> LossTerms:
    """sum_t (sum_{k>=t} (r_k - beta D_k) - beta W_t)^2 over every action [S15, S18]; unit: action.

    lam < 1 is this project's ShiQ(lambda): delta_t = e_t + lam delta_{t+1} with the step residuals e of `shiq_ms`.
    lam = 1 is the paper's loss, lam = 0 is `shiq_ms`. No paper has tried the values between on language.
    """
    if lam == 1:
        value = beta * partition_shifts(batch, policy, reference)
        residual = path_residuals(batch, policy, reference, value, beta)
    else:
        residual = suffix_sum(step_residuals(batch, policy, reference, beta), decay=lam)
    return squares(residual, batch.action_mask, batch.action_mask.sum())


@needs("rewards")
def shiq_init(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """sum_t (sum_{k>=t} (r_k - beta D_k) - beta v(s_t))^2: ShiQ without its reward shaping [S19, S20]; unit: action.

    The value is the policy's own log-partition, not its shift from the reference's, so that l = l_ref is no fixed
    point at r = 0 unless v_ref = 0.
    """
    residual = path_residuals(batch, policy, reference, beta * policy.log_partition, beta)
    return squares(residual, batch.action_mask, batch.action_mask.sum())


@needs("rewards")
def shiq_ms(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """sum_t (r_t + beta W_{t+1} - beta (l - l_ref)(s_t,a_t))^2: ShiQ without multi-step [S13, S21]; unit: action.

    The residual method: both terms carry gradient, there is no target network.
    """
    residual = step_residuals(batch, policy, reference, beta)
    return squares(residual, batch.action_mask, batch.action_mask.sum())


@needs("rewards")
def shiq_tk(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """ShiQ's square at the first action of every turn only [S22, S23; S D.5]; unit: trajectory with an action."""
    value = beta * partition_shifts(batch, policy, reference)
    residual = path_residuals(batch, policy, reference, value, beta)
    return squares(residual, turn_starts(batch), sequences(batch))
