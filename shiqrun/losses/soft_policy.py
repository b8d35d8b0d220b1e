"""SPO: a Q-function that is nothing but cumulated log-ratios and one number per prompt (arXiv 2503.05453).

With A_t = beta D_t [P11] and the prompt's value Q0 = beta log E_ref[exp(R / beta)] [P3],

    Q_t = Q0 + sum_{k<=t} A_k [P12],    Q_T = R [P13]

at the optimum, for every trajectory, whoever produced it. R is a trajectory's whole return. Every loss is summed over
its units and never averaged; the training step divides once. No gradient flows through Q0, a return or a target.

The link "square" compares Q with its target in reward units. "cross_entropy" compares probabilities: y = (Q - top) /
beta is a log-probability and x = exp((target - top) / beta) what it is to be, top the largest return there can be.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, pad, relu

from shiqrun.losses.pairs import returns
from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import log_ratios, masked, sequences, suffix_sum
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories

Link = Literal["square", "cross_entropy"]


@needs("rewards", "prompt_value")
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
    """L(Q_T, R), terminal Q-regression [P13] with L the link's; unit: trajectory with an action."""
    quality, level = cumulated(batch, policy, reference, beta), returns(batch)
    last = batch.action_mask & ~pad(batch.action_mask[:, 1:], (0, 1))
    loss = linked(quality, level[:, None].expand_as(quality), link, beta=beta, top=top, eps=eps)
    return _terms(batch, loss, last, quality, level)


@needs("rewards", "prompt_value")
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
    """sum_t L(Q_t, stop(R - sum_{k>t} A_k)), reverse-Q targets; unit: trajectory with an action.

    Squared, its gradient is the terminal one with weight T - k + 1 on action k.
    """
    quality, level = cumulated(batch, policy, reference, beta), returns(batch)
    advantage = beta * log_ratios(batch, policy, reference).detach()
    target = level[:, None] - (suffix_sum(advantage) - advantage)
    loss = linked(quality, target, link, beta=beta, top=top, eps=eps)
    return _terms(batch, loss, batch.action_mask, quality, level)


@needs("rewards", "prompt_value")
def spo_advantage(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """Cross-entropy of sigmoid(sum_t A_t) with sigmoid(R - Q0), in reward units; unit: trajectory with an action.

    Its curvature fades where |R - Q0| is large: keep rewards of order 1.
    """
    quality, level = cumulated(batch, policy, reference, beta), returns(batch)
    advantage = beta * log_ratios(batch, policy, reference).sum(-1, keepdim=True)
    wanted = torch.sigmoid(level - prompt_values(batch))[:, None]
    loss = binary_cross_entropy_with_logits(advantage, wanted, reduction="none").expand_as(quality)
    last = batch.action_mask & ~pad(batch.action_mask[:, 1:], (0, 1))
    return _terms(batch, loss, last, quality, level)


def monte_carlo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: float,
    top: float = 0.0,
    eps: float = 1e-3,
) -> LossTerms:
    """Cross-entropy of Q_t with `value_target` where there is one; unit: annotated action.

    A target is beta log E_ref[exp(R / beta) | prefix up to the action]; the cross-entropy is unbiased in exp(Q / beta).
    """
    quality, there = cumulated(batch, policy, reference, beta), annotated(batch)
    target = torch.zeros_like(quality)
    if batch.value_target is not None:
        target = batch.value_target.to(quality.dtype).masked_fill(~there, 0)
    loss = linked(quality, target, "cross_entropy", beta=beta, top=top, eps=eps).masked_fill(~there, 0)
    count, gap = there.sum(), (quality - target).detach().abs().masked_fill(~there, 0)
    metrics = {"monte_carlo": (loss.detach().sum(), count), "target_gap_abs": (gap.sum(), count)}
    return LossTerms(loss.sum(), count, metrics)


def annotated(batch: Trajectories) -> Tensor:
    """Where an action has a `value_target`, `[B, A]` bool."""
    if batch.value_target is None:
        return torch.zeros_like(batch.action_mask)
    return batch.action_mask & ~batch.value_target.isnan()


def prompt_values(batch: Trajectories) -> Tensor:
    """Q0, `[B]`, reward units.

    Raises:
        ValueError: the batch has none.
    """
    if batch.prompt_value is None:
        raise ValueError("SPO reads Q0 from prompt_value, but the batch has none")
    return batch.prompt_value


def cumulated(batch: Trajectories, policy: ActionScores, reference: ActionScores, beta: float) -> Tensor:
    """Q_t = Q0 + sum_{k<=t} beta D_k, `[B, A]`, reward units [P12]; behind a row's last action its last value."""
    ratios = log_ratios(batch, policy, reference)
    return prompt_values(batch).to(ratios.dtype)[:, None] + beta * ratios.cumsum(-1)


def linked(quality: Tensor, target: Tensor, link: Link, *, beta: float, top: float, eps: float) -> Tensor:
    """How far Q is from its target, elementwise: (Q - target)^2, or `log_probability_loss`."""
    if link == "square":
        return (quality - target).square()
    wanted = ((target - top) / beta).clamp(max=0).exp()  # reverse-Q targets may be above every return
    return log_probability_loss((quality - top) / beta, wanted, eps)


def log_probability_loss(y: Tensor, x: Tensor, eps: float) -> Tensor:
    """x relu(-y) - (1 - x) log(1 - exp(y_c)), y_c = min(y, -eps), d y_c / d y = 1: finite for every y, 0 <= x <= 1.

    The cross-entropy of a coin of probability exp(y) with one of probability x. Where y is above -eps a failure has
    gradient (1 - x) / (exp(eps) - 1), so that eps moves no optimum but bounds the step back.
    """
    clipped = y.detach().clamp(max=-eps) + (y - y.detach())
    return x * relu(-y) - (1 - x) * torch.log(-torch.expm1(clipped))


def _terms(batch: Trajectories, loss: Tensor, chosen: Tensor, quality: Tensor, level: Tensor) -> LossTerms:
    """The sum over the chosen actions, divided by trajectories, with what SPO shows of its Q-function."""
    count, there = sequences(batch), batch.action_mask.any(-1)
    final = masked(quality, batch).detach()
    last = batch.action_mask.sum(-1, keepdim=True).clamp(min=1) - 1
    gap = (final.gather(-1, last).squeeze(-1) - level).masked_fill(~there, 0)
    metrics = {
        "q_gap_mean": (gap.sum(), count),
        "q_gap_abs": (gap.abs().sum(), count),
        "prompt_value": (prompt_values(batch).masked_fill(~there, 0).sum(), count),
    }
    return LossTerms(loss.masked_fill(~chosen, 0).sum(), count, metrics)
