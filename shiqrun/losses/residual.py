"""This module computes what several losses share: log-ratios, regularised rewards, suffix sums, and residuals.

docs/math.md, "Shared quantities", defines each of them and says which loss uses which value estimate V. In short: the
path residual of action t is

    delta_t = R_t - beta * sum_{k>=t} D_k - V(s_t),    D = log pi - log pi_ref,   R_t = sum_{k>=t} r_k

and the right value makes it zero on every suffix of every trajectory, whichever policy produced the trajectory.

Entries without an action are replaced by zero and never multiplied by it, because 0 * NaN is NaN.
"""

from typing import Literal

from torch import Tensor, zeros_like
from torch.nn.functional import pad

from shiqrun.types import ActionScores, LossTerms, Trajectories


def zero_padding(x: Tensor, batch: Trajectories) -> Tensor:
    """Return x with exact zeros where a row has no action, `[B, A]`; not even a NaN of the padding is left."""
    return x.masked_fill(~batch.action_mask, 0)


def log_ratios(batch: Trajectories, policy: ActionScores, reference: ActionScores) -> Tensor:
    """Return the log-ratios D_t = log pi(a_t|s_t) - log pi_ref(a_t|s_t), `[B, A]`, nats, zero in the padding."""
    return zero_padding(policy.logp - reference.logp, batch)


def partition_shifts(batch: Trajectories, policy: ActionScores, reference: ActionScores) -> Tensor:
    """Return the shifts of the log-partition W_t = v(s_t) - v_ref(s_t), `[B, A]`, nats, zero in the padding."""
    return zero_padding(policy.log_partition - reference.log_partition, batch)


def regularised_rewards(batch: Trajectories, policy: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """Return the KL-regularised rewards r_t - beta D_t, `[B, A]`, reward units, zero in the padding."""
    return zero_padding(batch.rewards, batch) - beta * log_ratios(batch, policy, reference)


def suffix_sum(x: Tensor, decay: float = 1.0) -> Tensor:
    """Return the decayed suffix sums y_t = x_t + decay * y_{t+1} along the last axis, in the shape and unit of x.

    Decay 1 gives sum_{k>=t} x_k. The recursion is unrolled into log2(A) shifted additions.
    """
    shift, factor, length = 1, decay, x.shape[-1]
    while shift < length and factor != 0:
        x = x + factor * pad(x[..., shift:], (0, shift))
        shift, factor = 2 * shift, factor * factor
    return x


def path_residuals(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, value: Tensor | float, beta: float
) -> Tensor:
    """Return the path residuals delta_t = sum_{k>=t} (r_k - beta D_k) - V(s_t), `[B, A]`, zero in the padding.

    docs/math.md, "Path residual". Reward units. The gradient flows through the log-ratios and through `value`.

    Args:
        batch: trajectories with rewards.
        policy: the policy's scores, nats.
        reference: the frozen reference's scores, nats.
        value: V(s_t), `[B, A]` or one number, reward units.
        beta: KL temperature, reward units per nat.
    """
    to_go = suffix_sum(regularised_rewards(batch, policy, reference, beta))
    return zero_padding(to_go - value, batch)


def step_residuals(batch: Trajectories, policy: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """Return the step residuals e_t = r_t + beta W_{t+1} - beta (l(s_t,a_t) - l_ref(s_t,a_t)), `[B, A]`.

    docs/math.md, "Step residual". Reward units, zero in the padding. W is 0 after the last action, and s_{t+1} is the
    state of the next action, behind any tokens that the environment inserted. The gradient flows through both of the
    policy's terms.
    """
    shifts = partition_shifts(batch, policy, reference)
    following = pad(shifts[:, 1:], (0, 1)) if shifts.shape[1] else zeros_like(shifts)
    advantage = zero_padding(policy.logit - reference.logit, batch)
    return zero_padding(batch.rewards + beta * (following - advantage), batch)


def turn_starts(batch: Trajectories) -> Tensor:
    """Return the first actions of turns, `[B, A]` bool: those whose token does not directly follow an action's."""
    continues = batch.action_index[:, 1:] == batch.action_index[:, :-1] + 1
    return batch.action_mask & ~pad(continues, (1, 0), value=False)


def action_count(batch: Trajectories) -> Tensor:
    """Return the number of actions of a batch, `[]` int64: the unit of losses over tokens."""
    return batch.action_mask.sum()


def trajectory_count(batch: Trajectories) -> Tensor:
    """Return the number of trajectories that have an action, `[]` int64: the unit of losses over sequences."""
    return batch.action_mask.any(-1).sum()


Units = Literal["action", "trajectory"]
"""What weighs the same in a loss over actions: every action, or every trajectory, by the mean over its actions."""


FadeFrom = Literal["first", "turn"]
"""Where weights that fall along a trajectory are 1: at its first action, or at the first action of every turn."""


def fading_weights(batch: Trajectories, fade: float, fade_from: FadeFrom) -> Tensor:
    """Return the weight of every action's square, `[B, A]` float64, no unit, zero in the padding.

    It is fade^k at the k-th action, counted from 0, of the trajectory or of its turn; 0^0 is 1.
    """
    place = batch.action_mask.cumsum(-1) - 1
    if fade_from == "turn":
        place = place - place.masked_fill(~turn_starts(batch), 0).cummax(-1).values if place.shape[-1] else place
    return zero_padding(fade ** place.clamp(min=0).double(), batch)


def count_by_unit(
    batch: Trajectories, units: Units = "action", fade: float = 1.0, fade_from: FadeFrom = "first"
) -> Tensor:
    """Return the number of units of a batch, `[]`: its actions, each as its weight, or its trajectories with an action.

    It is int64, float64 where weights fade.
    """
    if units == "trajectory":
        return trajectory_count(batch)
    return action_count(batch) if fade == 1 else fading_weights(batch, fade, fade_from).sum()


def squares_by_unit(
    residual: Tensor, batch: Trajectories, units: Units, fade: float = 1.0, fade_from: FadeFrom = "first"
) -> LossTerms:
    """Return the loss that sums weighted squares of residuals over all actions, or their means over trajectories.

    Args:
        residual: `[B, A]`, reward units, differentiable.
        batch: trajectories.
        units: "action" divides the step by the weights of all its actions, "trajectory" each trajectory by its own.
        fade: no unit; the weight of an action divided by that of the action before it.
        fade_from: see `FadeFrom`.
    """
    count, weight = count_by_unit(batch, units, fade, fade_from), None
    if fade != 1:
        weight = fading_weights(batch, fade, fade_from).to(residual.dtype)
        if units == "trajectory":
            weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
    elif units == "trajectory":
        weight = batch.action_mask.sum(-1, keepdim=True).clamp(min=1).to(residual.dtype).reciprocal()
    return sum_of_squares(residual, batch.action_mask, count, weight)


def sum_of_squares(residual: Tensor, chosen: Tensor, count: Tensor, weight: Tensor | None = None) -> LossTerms:
    """Return the loss that sums squared residuals over the chosen actions, with metrics of the residuals.

    Args:
        residual: `[B, A]`, reward units, differentiable.
        chosen: `[B, A]` bool, the actions that are summed.
        count: `[]`, units by which the training step divides the sum.
        weight: `[B, 1]` or `[B, A]`, no unit, factor on the squares; None for 1. Metrics are not weighted.
    """
    picked = residual.masked_fill(~chosen, 0)
    size, detached = chosen.sum(), picked.detach()
    metrics = {"residual_mean": (detached.sum(), size), "residual_abs": (detached.abs().sum(), size)}
    place = chosen.cumsum(-1) - 1  # number of the chosen action in its row
    quarter = 4 * place // chosen.sum(-1, keepdim=True).clamp(min=1)
    for q in range(4):
        inside = chosen & (quarter == q)
        metrics[f"residual_abs/quarter_{q + 1}"] = (detached.abs().masked_fill(~inside, 0).sum(), inside.sum())
    squares = picked.square() if weight is None else weight * picked.square()
    return LossTerms(squares.sum(), count, metrics)
