"""DPO, IPO and the Bradley-Terry reward model learn from which of two completions of a prompt is better."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from shiqrun.losses.pairs import Pairing, decided_pair_count, decided_pairs
from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import log_ratios, trajectory_count, zero_padding
from shiqrun.types import ActionScores, HalfInterval, LossTerms, Positive, Trajectories


@needs("rewards", "pairs", "order", units=decided_pair_count)
def dpo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    label_smoothing: HalfInterval = 0.0,
    pairing: Pairing = "all",
) -> LossTerms:
    """Return the DPO loss: the logistic loss of the winner's log-ratio over the loser's.

        sum over pairs of -log sigmoid(beta (sum_t D_t^w - sum_t D_t^l)),    w has the larger return, l the smaller

    Unit: pair with different returns. Rafailov et al. 2023, arXiv 2305.18290, equation 7; over several turns the sums
    run over action tokens only (Rafailov et al. 2024, arXiv 2404.12358; appendix D.5 of arXiv 2505.11081);
    docs/math.md, "DPO". The gradient flows through both completions. A tie has no winner: it is dropped and not
    counted, and the metric `ties` is the share of pairs that are ties.

    Args:
        batch: trajectories with rewards; they only decide who wins. Rows with equal `group` answer the same prompt.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: scale of the implicit reward beta sum_t D_t, reward units per nat.
        label_smoothing: probability that a label is wrong (conservative DPO), no unit.
        pairing: "all" pairs of a prompt's completions, or only its best with its worst ("best_worst").
    """
    winner, loser, ties = decided_pairs(batch, pairing)
    ratios = log_ratios(batch, policy, reference).sum(-1)
    margin = beta * (ratios[winner] - ratios[loser])
    loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    count = torch.full_like(winner, 1).sum()
    metrics = preference_metrics(batch, policy, beta * ratios, winner, loser)
    return LossTerms(loss.sum(), count, {"ties": (ties, count + ties), **metrics})


@needs("rewards", "pairs", "order", units=decided_pair_count)
def ipo(
    batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive, pairing: Pairing = "all"
) -> LossTerms:
    """Return the IPO loss: the square of the winner's log-ratio over the loser's, less a margin.

        sum over pairs of (sum_t D_t^w - sum_t D_t^l - 1 / (2 beta))^2,    w has the larger return, l the smaller

    Unit: pair with different returns. Azar et al. 2023, arXiv 2310.12036, equation 17, whose tau is beta; docs/math.md,
    "IPO". Log-ratios are summed over action tokens, not averaged. Ties are dropped, and the metric `ties` is their
    share.

    Args:
        batch: trajectories with rewards; they only decide who wins. Rows with equal `group` answer the same prompt.
        policy: the policy's scores, nats, with gradient.
        reference: the frozen reference's scores, nats.
        beta: weight of the KL against the probability of winning, per nat.
        pairing: "all" pairs of a prompt's completions, or only its best with its worst ("best_worst").
    """
    winner, loser, ties = decided_pairs(batch, pairing)
    ratios = log_ratios(batch, policy, reference).sum(-1)
    residual = ratios[winner] - ratios[loser] - 1 / (2 * beta)
    count = torch.full_like(winner, 1).sum()
    metrics = preference_metrics(batch, policy, beta * ratios, winner, loser)
    return LossTerms(residual.square().sum(), count, {"ties": (ties, count + ties), **metrics})


@needs("rewards", "pairs", "order", "score", units=decided_pair_count)
def reward_model(
    batch: Trajectories, policy: ActionScores, reference: ActionScores | None, *, pairing: Pairing = "all"
) -> LossTerms:
    """Return the loss of a Bradley-Terry reward model: the logistic loss of the winner's score over the loser's.

        sum over pairs of -log sigmoid(s^w - s^l),    s is the score at a trajectory's last action

    Unit: pair with different returns. Bradley and Terry 1952, as in Ouyang et al. 2022, arXiv 2203.02155, equation 1;
    docs/math.md, "Reward model". Ties are dropped, and the metric `ties` is their share.

    Args:
        batch: trajectories with rewards; they only decide who wins. Rows with equal `group` answer the same prompt.
        policy: scores with `value` `[B, A]`, the score behind every action, in units of log-odds, with gradient.
        reference: not read, may be None.
        pairing: "all" pairs of a prompt's completions, or only its best with its worst ("best_worst").

    Raises:
        ValueError: the policy has no value head.
    """
    if policy.value is None:
        raise ValueError("reward_model reads its score from policy.value, but the policy has no value head")
    winner, loser, ties = decided_pairs(batch, pairing)
    last = batch.action_mask & ~pad(batch.action_mask[:, 1:], (0, 1))
    score = policy.value.masked_fill(~last, 0).sum(-1)
    margin = score[winner] - score[loser]
    count, detached = torch.full_like(winner, 1).sum(), margin.detach()
    metrics = {
        "ties": (ties, count + ties),
        "accuracy": ((detached > 0).sum(), count),
        "margin": (detached.sum(), count),
        "mean_reward": (score.detach().sum(), trajectory_count(batch)),
    }
    return LossTerms(-logsigmoid(margin).sum(), count, metrics)


@torch.no_grad()
def preference_metrics(
    batch: Trajectories, policy: ActionScores, implicit: Tensor, winner: Tensor, loser: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return TRL's metrics of preference pairs, each as (sum, count of pairs), `[]`.

    Args:
        batch: trajectories.
        policy: the policy's scores, nats.
        implicit: `[B]`, implicit rewards beta sum_t D_t, reward units.
        winner: `[P]` int64, rows of the better completions.
        loser: `[P]` int64, rows of the worse ones.
    """
    logps = zero_padding(policy.logp, batch).sum(-1)
    count = torch.full_like(winner, 1).sum()
    chosen, rejected = implicit[winner], implicit[loser]
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps[winner],
        "logps/rejected": logps[loser],
    }
    return {name: (x.sum(), count) for name, x in values.items()}
