"""SPO, soft policy optimization, fits a Q-function of cumulative log-ratios and one value per prompt to returns.

Cohen et al. 2025, arXiv 2503.05453 (not Single-stream Policy Optimization, arXiv 2509.13232, which has the same
initials). With the advantage A_t = beta D_t and the prompt value Q0 = beta log E_ref[exp(R / beta)],

    Q_t = Q0 + sum_{k<=t} A_k,    Q_T = R

holds at the optimum for every trajectory, whichever policy produced it; R is the return of the whole trajectory. Each
loss is a sum over its units and never a mean; the training step divides once. No gradient flows through Q0, a return or
a target. docs/math.md, "SPO".

The link "square" compares Q with its target in reward units. The link "cross_entropy" compares probabilities:
y = (Q - top) / beta is a log-probability, its target is x = exp((target - top) / beta), and top is the largest return
that there can be.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, pad, relu

from shiqrun.losses.pairs import returns
from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import log_ratios, suffix_sum, trajectory_count, zero_padding
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories

Link = Literal["square", "cross_entropy"]
"""How Q is compared with its target: see above."""


def annotated_actions(batch: Trajectories) -> Tensor:
    """Return which actions have a value target, `[B, A]` bool."""
    if batch.value_target is None:
        return torch.zeros_like(batch.action_mask)
    return batch.action_mask & ~batch.value_target.isnan()


def annotated_action_count(batch: Trajectories) -> Tensor:
    """Return the number of actions with a value target, `[]` int64: the unit of the Monte-Carlo term."""
    return annotated_actions(batch).sum()


@needs("rewards", "prompt_value", units=trajectory_count)
def spo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    link: Link = "square",
    top: float = 0.0,
    eps: Positive = 1e-3,
) -> LossTerms:
    """Return the loss of SPO's terminal Q-regression: the Q-value of the last action is regressed on the return.

        sum over trajectories of L(Q_T, R),    L(Q, R) = (Q - R)^2 or its cross-entropy

    Unit: trajectory with an action. arXiv 2503.05453, equations 12 and 13; docs/math.md, "SPO". The gradient flows
    through the log-ratios in Q_T alone.

    Args:
        batch: trajectories with rewards and `prompt_value`, reward units.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        link: "square" or "cross_entropy".
        top: reward units; the largest return there can be, for "cross_entropy".
        eps: nats; how near to 0 a log-probability may come, for "cross_entropy".

    Raises:
        ValueError: the batch has no prompt values.
    """
    quality, level = cumulative_q(batch, policy, reference, beta), returns(batch)
    last = batch.action_mask & ~pad(batch.action_mask[:, 1:], (0, 1))
    loss = q_errors(quality, level[:, None].expand_as(quality), link, beta=beta, top=top, eps=eps)
    return _sum_with_q_metrics(batch, loss, last, quality, level)


@needs("rewards", "prompt_value", units=trajectory_count)
def spo_nonterminal(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    link: Link = "square",
    top: float = 0.0,
    eps: Positive = 1e-3,
) -> LossTerms:
    """Return the loss of SPO's non-terminal Q-regression: every action's Q-value is regressed on a reverse-Q target.

        sum over trajectories of sum_t L(Q_t, stop(R - sum_{k>t} A_k))

    Summed over every action, divided by trajectories with an action. arXiv 2503.05453; docs/math.md,
    "SPO, non-terminal". `stop` detaches. With squares, its gradient is that of `spo` with weight T - k + 1 on action k.

    Args:
        batch: trajectories with rewards and `prompt_value`, reward units.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        link: "square" or "cross_entropy".
        top: reward units; the largest return there can be, for "cross_entropy".
        eps: nats; how near to 0 a log-probability may come, for "cross_entropy".

    Raises:
        ValueError: the batch has no prompt values.
    """
    quality, level = cumulative_q(batch, policy, reference, beta), returns(batch)
    advantage = beta * log_ratios(batch, policy, reference).detach()
    target = level[:, None] - (suffix_sum(advantage) - advantage)
    loss = q_errors(quality, target, link, beta=beta, top=top, eps=eps)
    return _sum_with_q_metrics(batch, loss, batch.action_mask, quality, level)


@needs("rewards", "prompt_value", units=trajectory_count)
def spo_advantage(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """Return the loss of SPO's advantage regression: a cross-entropy of the summed advantage and the return above Q0.

        sum over trajectories of the binary cross-entropy of sigmoid(sum_t A_t) with target sigmoid(R - Q0)

    Unit: trajectory with an action. arXiv 2503.05453; docs/math.md, "SPO, advantage". The sigmoids take reward units,
    and their curvature fades where |R - Q0| is large: keep rewards of order 1.

    Args:
        batch: trajectories with rewards and `prompt_value`, reward units.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.

    Raises:
        ValueError: the batch has no prompt values.
    """
    quality, level = cumulative_q(batch, policy, reference, beta), returns(batch)
    advantage = beta * log_ratios(batch, policy, reference).sum(-1, keepdim=True)
    wanted = torch.sigmoid(level - prompt_values(batch))[:, None]
    loss = binary_cross_entropy_with_logits(advantage, wanted, reduction="none").expand_as(quality)
    last = batch.action_mask & ~pad(batch.action_mask[:, 1:], (0, 1))
    return _sum_with_q_metrics(batch, loss, last, quality, level)


@needs("rewards", units=annotated_action_count)
def monte_carlo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: float,
    top: float = 0.0,
    eps: float = 1e-3,
) -> LossTerms:
    """Return SPO's Monte-Carlo term: the cross-entropy of Q_t with a value target, at annotated actions.

        sum over annotated actions t of L(Q_t, target_t),    target_t = beta log E_ref[exp(R / beta) | prefix up to a_t]

    Unit: annotated action. arXiv 2503.05453; docs/math.md, "Monte-Carlo term". The gradient flows through Q_t alone.
    The cross-entropy is unbiased in exp(Q / beta) for targets that are estimated from a few completions.

    Args:
        batch: trajectories with `prompt_value`, and `value_target` at annotated actions, reward units.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        top: reward units; the largest return there can be.
        eps: nats; how near to 0 a log-probability may come.

    Raises:
        ValueError: the batch has no prompt values.
    """
    quality, there = cumulative_q(batch, policy, reference, beta), annotated_actions(batch)
    target = torch.zeros_like(quality)
    if batch.value_target is not None:
        target = batch.value_target.to(quality.dtype).masked_fill(~there, 0)
    loss = q_errors(quality, target, "cross_entropy", beta=beta, top=top, eps=eps).masked_fill(~there, 0)
    count, gap = there.sum(), (quality - target).detach().abs().masked_fill(~there, 0)
    metrics = {"monte_carlo": (loss.detach().sum(), count), "target_gap_abs": (gap.sum(), count)}
    return LossTerms(loss.sum(), count, metrics)


def prompt_values(batch: Trajectories) -> Tensor:
    """Return the prompt values Q0, `[B]`, reward units.

    Raises:
        ValueError: the batch has none.
    """
    if batch.prompt_value is None:
        raise ValueError("SPO reads Q0 from prompt_value, but the batch has none")
    return batch.prompt_value


def cumulative_q(batch: Trajectories, policy: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """Return the cumulative Q-values Q_t = Q0 + sum_{k<=t} beta D_k, `[B, A]`, reward units.

    Behind a row's last action the value of the last action is repeated. The gradient flows through the log-ratios.

    Raises:
        ValueError: the batch has no prompt values.
    """
    ratios = log_ratios(batch, policy, reference)
    return prompt_values(batch).to(ratios.dtype)[:, None] + beta * ratios.cumsum(-1)


def q_errors(quality: Tensor, target: Tensor, link: Link, *, beta: float, top: float, eps: float) -> Tensor:
    """Return the loss of each Q-value against its target, `[B, A]`: the square, or `log_probability_loss`."""
    if link == "square":
        return (quality - target).square()
    wanted = ((target - top) / beta).clamp(max=0).exp()  # a reverse-Q target may exceed every return
    return log_probability_loss((quality - top) / beta, wanted, eps)


def log_probability_loss(y: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return the cross-entropy of a coin of probability exp(y) with one of probability x, elementwise, nats.

        x relu(-y) - (1 - x) log(1 - exp(y_c)),    y_c = min(y, -eps),    d y_c / d y = 1

    It is finite for every y and 0 <= x <= 1. Where y is above -eps, a failure (x = 0) has gradient
    (1 - x) / (exp(eps) - 1): eps moves no optimum but bounds the step back. docs/math.md, "Cross-entropy link".
    """
    clipped = y.detach().clamp(max=-eps) + (y - y.detach())
    return x * relu(-y) - (1 - x) * torch.log(-torch.expm1(clipped))


def _sum_with_q_metrics(batch: Trajectories, loss: Tensor, chosen: Tensor, quality: Tensor, level: Tensor) -> LossTerms:
    """Return the sum of `loss` over the chosen actions, with trajectories as units and metrics of the Q-function."""
    count, acts = trajectory_count(batch), batch.action_mask.any(-1)
    final = zero_padding(quality, batch).detach()
    last = batch.action_mask.sum(-1, keepdim=True).clamp(min=1) - 1
    gap = (final.gather(-1, last).squeeze(-1) - level).masked_fill(~acts, 0)
    metrics = {
        "q_gap_mean": (gap.sum(), count),
        "q_gap_abs": (gap.abs().sum(), count),
        "prompt_value": (prompt_values(batch).masked_fill(~acts, 0).sum(), count),
    }
    return LossTerms(loss.masked_fill(~chosen, 0).sum(), count, metrics)
