"""The two rungs of ShiQ's derivation before the shift: soft-Q with the reference in its backup, and `direct`."""

from torch import Tensor
from torch.nn.functional import pad

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import masked, squares
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories


@needs("rewards")
def direct(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """sum_t (r_t + beta v(s_{t+1}) - beta (l(s_t,a_t) - log pi_ref(a_t|s_t)))^2 [S10]; unit: action.

    v = 0 after the last action. The policy is softmax(l), and the optimum's log-partition is V*/beta.
    """
    following = _next(masked(policy.log_partition, batch))
    residual = masked(batch.rewards + beta * following - beta * (policy.logit - reference.logp), batch)
    return squares(residual, batch.action_mask, batch.action_mask.sum())


@needs("rewards")
def soft_q(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive, soft_value: Tensor
) -> LossTerms:
    """sum_t (r_t + V(s_{t+1}) - l(s_t,a_t))^2, V(s) = beta log sum_a pi_ref(a|s) exp(l(s,a)/beta) [S6]; unit: action.

    Needs whole rows of logits for V, so it is for tables (`shiqrun toy`): the caller passes `soft_value`, V(s_t)
    `[B, A]`, reward units, with gradient. V = 0 after the last action; the policy is pi ∝ pi_ref exp(l/beta).
    """
    following = _next(masked(soft_value, batch))
    residual = masked(batch.rewards + following - policy.logit, batch)
    return squares(residual, batch.action_mask, batch.action_mask.sum())


def _next(x: Tensor) -> Tensor:
    """x(s_{t+1}), `[B, A]`: the next column, zero after the last action."""
    return pad(x[:, 1:], (0, 1)) if x.shape[1] else x
