"""ShiQ and its ablations read the policy's logits as Q-values and square their Bellman residuals.

Clavier et al. 2025, "ShiQ: Bringing back Bellman to LLMs", arXiv 2505.11081. Each loss is a sum over its units and
never a mean; the training step divides once, by the units of the whole optimiser step. Gradients flow through both of
the policy's numbers (logit and log-partition) and through no number of the reference.
"""

from shiqrun.losses.requirements import needs
from shiqrun.losses.residual import (
    FadeFrom,
    Units,
    count_by_unit,
    partition_shifts,
    path_residuals,
    squares_by_unit,
    step_residuals,
    suffix_sum,
    sum_of_squares,
    trajectory_count,
    turn_starts,
)
from shiqrun.types import ActionScores, LossTerms, Positive, Trajectories, UnitInterval


@needs("rewards", units=count_by_unit)
def shiq(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    lam: UnitInterval = 1.0,
    units: Units = "action",
    fade: UnitInterval = 1.0,
    fade_from: FadeFrom = "first",
) -> LossTerms:
    """Return the ShiQ loss: squared path residuals, with the shift of the log-partition as the value.

        sum_t (sum_{k>=t} (r_k - beta D_k) - beta W_t)^2

    Summed over every action; unit: action. arXiv 2505.11081, equations 15 and 18; docs/math.md, "ShiQ". With lam < 1
    it is this project's ShiQ(lambda), squares of delta_t = e_t + lam delta_{t+1} with the step residuals e_t; no paper
    has tried these values on language. `units` and `fade`, this project's too, weigh the squares, by which no fixed
    point moves (docs/math.md, "The weight of a square").

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores, nats; the gradient flows through logit and log-partition.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        lam: no unit; 1 is the paper's loss, 0 is `shiq_ms`.
        units: what weighs the same, "action" (the paper's) or "trajectory".
        fade: no unit; factor from the weight of an action to that of the next; 1 is the paper's.
        fade_from: "first" counts from the first action, "turn" from the first action of every turn.
    """
    if lam == 1:
        value = beta * partition_shifts(batch, policy, reference)
        residual = path_residuals(batch, policy, reference, value, beta)
    else:
        residual = suffix_sum(step_residuals(batch, policy, reference, beta), decay=lam)
    return squares_by_unit(residual, batch, units, fade, fade_from)


@needs("rewards", units=count_by_unit)
def shiq_init(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    units: Units = "action",
    fade: UnitInterval = 1.0,
    fade_from: FadeFrom = "first",
) -> LossTerms:
    """Return the loss of ShiQ without reward shaping: the value is the policy's own log-partition.

        sum_t (sum_{k>=t} (r_k - beta D_k) - beta v(s_t))^2

    Summed over every action; unit: action. arXiv 2505.11081, equations 19 and 20; docs/math.md, "ShiQ/init". Without
    rewards, a policy equal to the reference is no fixed point unless v_ref = 0.

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores, nats; the gradient flows through logit and log-partition.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        units: what weighs the same, "action" (the paper's) or "trajectory"; docs/math.md, "The weight of a square".
        fade: no unit; factor from the weight of an action to that of the next; 1 is the paper's.
        fade_from: "first" counts from the first action, "turn" from the first action of every turn.
    """
    residual = path_residuals(batch, policy, reference, beta * policy.log_partition, beta)
    return squares_by_unit(residual, batch, units, fade, fade_from)


@needs("rewards", units=count_by_unit)
def shiq_ms(
    batch: Trajectories,
    policy: ActionScores,
    reference: ActionScores,
    *,
    beta: Positive,
    units: Units = "action",
    fade: UnitInterval = 1.0,
    fade_from: FadeFrom = "first",
) -> LossTerms:
    """Return the loss of ShiQ without multi-step returns: squared one-step Bellman residuals.

        sum_t (r_t + beta W_{t+1} - beta (l(s_t,a_t) - l_ref(s_t,a_t)))^2

    Summed over every action; unit: action. arXiv 2505.11081, equations 13 and 21; docs/math.md, "ShiQ/ms". The
    gradient flows through the next state's value too (residual method): there is no target network.

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores, nats; the gradient flows through logit and log-partition.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
        units: what weighs the same, "action" (the paper's) or "trajectory"; docs/math.md, "The weight of a square".
        fade: no unit; factor from the weight of an action to that of the next; 1 is the paper's.
        fade_from: "first" counts from the first action, "turn" from the first action of every turn.
    """
    residual = step_residuals(batch, policy, reference, beta)
    return squares_by_unit(residual, batch, units, fade, fade_from)


@needs("rewards", units=trajectory_count)
def shiq_tk(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """Return the loss of ShiQ at the level of sequences: the path residual squared at each turn's first action only.

        sum over the first action t of every turn of (sum_{k>=t} (r_k - beta D_k) - beta W_t)^2

    Unit: trajectory with an action, however many turns it has. arXiv 2505.11081, equations 22 and 23, and appendix D.5
    for several turns; docs/math.md, "ShiQ/tk".

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores, nats; the gradient flows through logit and log-partition.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
    """
    value = beta * partition_shifts(batch, policy, reference)
    residual = path_residuals(batch, policy, reference, value, beta)
    return sum_of_squares(residual, turn_starts(batch), trajectory_count(batch))


@needs("rewards", units=trajectory_count)
def tbrm(batch: Trajectories, policy: ActionScores, reference: ActionScores, *, beta: Positive) -> LossTerms:
    """Return the TBRM loss: the path residual squared at the first action, with the policy's log-partition as value.

        sum over trajectories of (R - beta sum_t D_t - beta v(s_1))^2

    Unit: trajectory with an action. Yuan et al. 2025, arXiv 2505.15311, times beta^2: it is `shiq_init` squared at one
    action; docs/math.md, "TBRM". Over several turns R is the return of the trajectory, and D is summed over action
    tokens only.

    Args:
        batch: trajectories with rewards, reward units.
        policy: the policy's scores, nats; the gradient flows through logit and log-partition.
        reference: the frozen reference's scores, nats.
        beta: KL temperature, reward units per nat.
    """
    residual = path_residuals(batch, policy, reference, beta * policy.log_partition, beta)
    first = batch.action_mask & (batch.action_mask.cumsum(-1) == 1)
    return sum_of_squares(residual, first, trajectory_count(batch))
