"""OREO fits a value of every state, and the policy, to the soft Bellman equation of whole suffixes.

Wang et al. 2024, "Offline Reinforcement Learning for LLM Multi-Step Reasoning", arXiv 2412.16145.
"""

from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import log_ratios, suffix_sum, trajectory_count, turn_starts, zero_padding
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories

Level = Literal["token", "turn"]
"""The actions of OREO's decision process: every token, or every turn of the policy as one."""


@needs("rewards", "value", "vocabulary_kl", off_at_zero={"vocabulary_kl": "kl_reg"}, units=trajectory_count)
def oreo(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    kl_reg: Annotated[float, Ge(0)] = 0.01,
    level: Level = "token",
) -> LossTerms:
    """Return the OREO loss: squared soft Bellman residuals that train a value of every state, then the policy.

        sum over trajectories of  mean_t (R_t - beta stop(sum_{k>=t} D_k) - V_t)^2
                                + mean_t (R_t - beta (own_t + stop(later_t)) - stop(V_t))^2
                                + kl_reg mean_t KL(pi(.|s_t) || pi_ref(.|s_t))

    own_t is D_t and later_t the sum of D_k behind it; at level "turn" t are the first actions of turns alone, and own_t
    is the sum of D over the turn. Unit: trajectory with an action. Wang et al. 2024, arXiv 2412.16145; docs/math.md,
    "OREO". `stop` detaches: the first part trains the value alone, the second the policy alone, and only through the
    log-ratio of the action itself.

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores, nats, with gradient; V_t is `policy.value`, reward units, and `policy.kl` the KL
            over the vocabulary, nats.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        kl_reg: weight of the KL over the vocabulary, squared reward units per nat; 0 leaves it out.
        level: "token" or "turn".

    Raises:
        ValueError: the policy has no value head, or its KL over the vocabulary was not computed.
    """
    if policy.value is None or (kl_reg and policy.kl is None):
        raise ValueError("oreo reads policy.value and, with kl_reg, policy.kl, but the policy has not both")
    ratios, value = log_ratios(batch, policy, reference), zero_padding(policy.value, batch)
    chosen = batch.action_mask if level == "token" else turn_starts(batch)
    own = ratios if level == "token" else _sums_over_turns(ratios, chosen)
    whole, earned = suffix_sum(ratios).detach(), suffix_sum(zero_padding(batch.rewards, batch))
    fitted = earned - beta * whole - value
    pulled = earned - beta * (own + (whole - own.detach())) - value.detach()
    total = (_means(fitted.square(), chosen) + _means(pulled.square(), chosen)).sum()
    if policy.kl is not None and kl_reg:
        total = total + kl_reg * _means(policy.kl, batch.action_mask).sum()
    return LossTerms(total, trajectory_count(batch), _metrics(batch, policy, fitted.detach(), chosen))


def _sums_over_turns(x: Tensor, starts: Tensor) -> Tensor:
    """Return at every action the sum of x over the actions of its turn, `[B, A]`, unit of x."""
    turn = (starts.cumsum(-1) - 1).clamp(min=0)
    return x.new_zeros(x.shape).scatter_add(-1, turn, x).gather(-1, turn)


def _means(x: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of x over the chosen actions of each trajectory, `[B]`; 0 where none is chosen."""
    return x.masked_fill(~chosen, 0).sum(-1) / chosen.sum(-1).clamp(min=1)


def _metrics(
    batch: Trajectories, policy: ActionScores, residual: Tensor, chosen: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return metrics of the residuals, the value and the KL over the vocabulary, each as (sum, count), `[]`."""
    assert policy.value is not None
    picked, size = residual.masked_fill(~chosen, 0), chosen.sum()
    found = {
        "residual_mean": (picked.sum(), size),
        "residual_abs": (picked.abs().sum(), size),
        "value_mean": (policy.value.detach().masked_fill(~chosen, 0).sum(), size),
        "value_loss": (picked.square().sum(), size),
    }
    if policy.kl is not None:
        found["vocabulary_kl"] = (zero_padding(policy.kl.detach(), batch).sum(), batch.action_mask.sum())
    return found
