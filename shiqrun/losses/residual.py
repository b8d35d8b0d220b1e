"""The words that every loss is written in: regularised rewards, suffix sums, path and step residuals.

With a value estimate V, the path-consistency residual of action t is

    delta_t = R_t - beta * sum_{k>=t} D_k - V(s_t),    D = log pi - log pi_ref,   R_t = sum_{k>=t} r_k

and the right value makes it zero on every suffix of every trajectory, whoever produced it. Who uses which value
(v = logsumexp of the logits, W = v - v_ref; ShiQ is arXiv 2505.11081, equations S):

| algorithm  | V(s_t)                    | squared over                 | equation |
|------------|---------------------------|------------------------------|----------|
| shiq       | beta W_t                  | every action                 | S15, S18 |
| shiq_init  | beta v(s_t)               | every action                 | S19, S20 |
| shiq_tk    | beta W_t                  | the first action of a turn   | S22, S23 |
| shiq_ms    | (one step, no path)       | every action                 | S13, S21 |
| dro        | 0, or the group's mean    | the first action             | S101     |
| dro_v      | a value head's V(x)       | the first action             | S25, S95 |
| copg       | the partner's U'          | the first action             | S24      |

(U = R - beta sum D is the residual of the first action with V = 0.)

The step residual e_t of shiq_ms is the difference of neighbours: delta_t = e_t + delta_{t+1}.
Masked entries are replaced, never multiplied: 0 * NaN is NaN.
"""

from torch import Tensor, zeros_like
from torch.nn.functional import pad

from shiqrun.types import ActionScores, LossTerms, Trajectories


def masked(x: Tensor, batch: Trajectories) -> Tensor:
    """x with exact zeros where there is no action, `[B, A]`; nothing of the padding survives, NaN included."""
    return x.masked_fill(~batch.action_mask, 0)


def log_ratios(batch: Trajectories, policy: ActionScores, reference: ActionScores) -> Tensor:
    """D_t = log pi(a_t|s_t) - log pi_ref(a_t|s_t), `[B, A]`, nats, zero where there is no action."""
    return masked(policy.logp - reference.logp, batch)


def partition_shifts(batch: Trajectories, policy: ActionScores, reference: ActionScores) -> Tensor:
    """W_t = v(s_t) - v_ref(s_t), `[B, A]`, nats, zero where there is no action."""
    return masked(policy.log_partition - reference.log_partition, batch)


def regularised_rewards(batch: Trajectories, policy: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """r_t - beta D_t, `[B, A]`, reward units, zero where there is no action."""
    return masked(batch.rewards, batch) - beta * log_ratios(batch, policy, reference)


def suffix_sum(x: Tensor, decay: float = 1.0) -> Tensor:
    """y_t = x_t + decay * y_{t+1} along the last axis, in log2(A) shifted additions; decay 1 gives sum_{k>=t} x_k."""
    shift, factor, length = 1, decay, x.shape[-1]
    while shift < length and factor != 0:
        x = x + factor * pad(x[..., shift:], (0, shift))
        shift, factor = 2 * shift, factor * factor
    return x


def path_residuals(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, value: Tensor | float, beta: float
) -> Tensor:
    """delta_t = sum_{k>=t} (r_k - beta D_k) - V(s_t), `[B, A]`, reward units, zero where there is no action."""
    to_go = suffix_sum(regularised_rewards(batch, policy, reference, beta))
    return masked(to_go - value, batch)


def step_residuals(batch: Trajectories, policy: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """e_t = r_t + beta W_{t+1} - beta (l(s_t,a_t) - l_ref(s_t,a_t)), W = 0 after the last action, `[B, A]` [S13]."""
    shifts = partition_shifts(batch, policy, reference)
    following = pad(shifts[:, 1:], (0, 1)) if shifts.shape[1] else zeros_like(shifts)
    advantage = masked(policy.logit - reference.logit, batch)
    return masked(batch.rewards + beta * (following - advantage), batch)


def turn_starts(batch: Trajectories) -> Tensor:
    """True on the first action of every turn, `[B, A]`: where `action_index` is not the previous one plus 1."""
    continues = batch.action_index[:, 1:] == batch.action_index[:, :-1] + 1
    return batch.action_mask & ~pad(continues, (1, 0), value=False)


def sequences(batch: Trajectories) -> Tensor:
    """Number of trajectories that have an action, `[]`."""
    return batch.action_mask.any(-1).sum()


def squares(residual: Tensor, chosen: Tensor, count: Tensor) -> LossTerms:
    """sum of residual^2 over `chosen`, with the residual's own metrics; `count` is what the step divides by."""
    picked = residual.masked_fill(~chosen, 0)
    size, shown = chosen.sum(), picked.detach()
    metrics = {"residual_mean": (shown.sum(), size), "residual_abs": (shown.abs().sum(), size)}
    place = chosen.cumsum(-1) - 1  # number of the unit in its row
    quarter = 4 * place // chosen.sum(-1, keepdim=True).clamp(min=1)
    for q in range(4):
        inside = chosen & (quarter == q)
        metrics[f"residual_abs/quarter_{q + 1}"] = (shown.abs().masked_fill(~inside, 0).sum(), inside.sum())
    return LossTerms(picked.square().sum(), count, metrics)
