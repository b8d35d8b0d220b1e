"""`soft_q` and `direct` are the losses from which the paper derives ShiQ: soft Q-learning, then without shaping.

Clavier et al. 2025, arXiv 2505.11081. The toy studies run both; `direct` also trains language models.
"""

from torch import Tensor
from torch.nn.functional import pad

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import action_count, sum_of_squares, zero_padding
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories


@needs("rewards", units=action_count)
def direct(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """Return the loss of ShiQ before its reward shaping: squared residuals with log pi_ref in them.

        sum_t (r_t + beta v(s_{t+1}) - beta (l(s_t,a_t) - log pi_ref(a_t|s_t)))^2,    v = 0 after the last action

    Summed over every action; unit: action. arXiv 2505.11081, equation 10; docs/math.md, "Direct". The policy is
    softmax(l), and at the optimum v = V*/beta.

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores, nats; the gradient flows through logit and log-partition.
        reference: the frozen reference's scores, nats; its log-probabilities are read.
        beta: KL temperature, reward units per nat.
    """
    following = _next(zero_padding(policy.log_partition, batch))
    residual = zero_padding(batch.rewards + beta * following - beta * (policy.logit - reference.logp), batch)
    return sum_of_squares(residual, batch.action_mask, action_count(batch))


@needs("rewards", units=action_count)
def soft_q(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive, soft_value: Tensor
) -> LossTerms:
    """Return the loss of soft Q-learning: squared residuals of logits that are Q-values in reward units.

        sum_t (r_t + V(s_{t+1}) - l(s_t,a_t))^2,    V(s) = beta log sum_a pi_ref(a|s) exp(l(s,a)/beta)

    Summed over every action; unit: action. arXiv 2505.11081, equation 6; docs/math.md, "Soft Q". V is 0 after the last
    action, and the policy is pi proportional to pi_ref exp(l/beta). V needs whole rows of logits, so the loss is for
    tables of logits (`shiqrun toy`).

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores; `logit` is in reward units here.
        reference: not read.
        beta: KL temperature, reward units per nat.
        soft_value: V(s_t), `[B, A]`, reward units, with its gradient.
    """
    following = _next(zero_padding(soft_value, batch))
    residual = zero_padding(batch.rewards + following - policy.logit, batch)
    return sum_of_squares(residual, batch.action_mask, action_count(batch))


def _next(x: Tensor) -> Tensor:
    """Return x(s_{t+1}), `[B, A]`: the next column, zero after the last action."""
    return pad(x[:, 1:], (0, 1)) if x.shape[1] else x
