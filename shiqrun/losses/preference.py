"""Losses that learn from which of two completions is better: DPO, and the Bradley-Terry reward model."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from shiqrun.losses.pairs import Pairing, pair_rows, returns
from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import log_ratios, masked, sequences
from shiqrun.types import ActionScores, HalfInterval, LossTerms, Positive, Trajectories


@needs("rewards", "pairs", "order")
def dpo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    label_smoothing: HalfInterval = 0.0,
    pairing: Pairing = "all",
) -> LossTerms:
    """-log sigmoid(beta (sum_t D_t^w - sum_t D_t^l)) over pairs, w the completion with the larger return; unit: pair.

    Rafailov et al., arXiv 2305.18290, eq. 7; over several turns the sum runs over action tokens only (arXiv 2404.12358;
    [S D.5]). With label_smoothing = e the label is wrong with probability e (conservative DPO). A tie has no winner:
    it is dropped, not counted as a unit, and shown: `ties` is the share of pairs that are one.
    """
    winner, loser, ties = _ordered(batch, pairing)
    ratios = log_ratios(batch, policy, reference).sum(-1)
    margin = beta * (ratios[winner] - ratios[loser])
    loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    count = torch.full_like(margin, 1.0).sum()
    metrics = preference_metrics(batch, policy, beta * ratios, winner, loser)
    return LossTerms(loss.sum(), count, {"ties": (ties, count + ties), **metrics})


@needs("rewards", "pairs", "order", "score")
def reward_model(
    batch: Trajectories, policy: ActionScores, reference: ActionScores | None, *, pairing: Pairing = "all"
) -> LossTerms:
    """-log sigmoid(s^w - s^l) over pairs, s the score `policy.value` at a trajectory's last action; unit: pair.

    Bradley and Terry 1952, as in Ouyang et al., arXiv 2203.02155, eq. 1. Ties are dropped and shown.

    Raises:
        ValueError: the policy has no value head.
    """
    if policy.value is None:
        raise ValueError("reward_model reads its score from policy.value, but the policy has no value head")
    winner, loser, ties = _ordered(batch, pairing)
    last = batch.action_mask & ~pad(batch.action_mask[:, 1:], (0, 1))
    score = policy.value.masked_fill(~last, 0).sum(-1)
    margin = score[winner] - score[loser]
    count = torch.full_like(margin, 1.0).sum()
    shown = margin.detach()
    metrics = {
        "ties": (ties, count + ties),
        "accuracy": ((shown > 0).to(count.dtype).sum(), count),
        "margin": (shown.sum(), count),
        "mean_reward": (score.detach().sum(), sequences(batch)),
    }
    return LossTerms(-logsigmoid(margin).sum(), count, metrics)


def _ordered(batch: Trajectories, pairing: Pairing) -> tuple[Tensor, Tensor, Tensor]:
    """(winner, loser) rows `[P]` of pairs with different returns, and the number of ties."""
    first, second = pair_rows(batch, pairing)
    level, size = returns(batch), masked(batch.rewards, batch).abs().sum(-1)
    rounding = 1e-6 * (size[first] + size[second])  # equal rewards in another order sum to another float
    decided = level[first] - level[second] > rounding
    return first[decided], second[decided], (~decided).sum()


def preference_metrics(
    batch: Trajectories, policy: ActionScores, implicit: Tensor, winner: Tensor, loser: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """TRL's metrics of a pair: implicit rewards beta sum D, their margin and accuracy, and log-probabilities."""
    with torch.no_grad():
        logps = masked(policy.logp, batch).sum(-1)
        count = torch.full_like(implicit[winner], 1.0).sum()
        chosen, rejected = implicit[winner], implicit[loser]
        shown = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
            "logps/chosen": logps[winner],
            "logps/rejected": logps[loser],
        }
        return {name: (x.sum(), count) for name, x in shown.items()}
