"""Each function here returns a loss of `shiqrun.losses` as a method, with its unit and the rows it learns from."""

from functools import partial

from shiqrun import losses
from shiqrun.toy.learner import StudyMethod
from shiqrun.types import Positive


def shiq(beta: Positive, lam: float = 1.0) -> StudyMethod:
    """Return ShiQ, or ShiQ(lambda) for lambda below 1."""
    name = "ShiQ" if lam == 1 else f"ShiQ({lam:g})"
    return StudyMethod(name, partial(losses.shiq, beta=beta, lam=lam), "action")


def shiq_ms(beta: Positive) -> StudyMethod:
    """Return ShiQ/ms, whose residuals span one step."""
    return StudyMethod("ShiQ/ms", partial(losses.shiq_ms, beta=beta), "action")


def shiq_tk(beta: Positive) -> StudyMethod:
    """Return ShiQ/tk, with one residual for a whole trajectory."""
    return StudyMethod("ShiQ/tk", partial(losses.shiq_tk, beta=beta), "trajectory")


def shiq_init(beta: Positive) -> StudyMethod:
    """Return ShiQ/init, ShiQ without the reward shaping by v_ref."""
    return StudyMethod("ShiQ/init", partial(losses.shiq_init, beta=beta), "action")


def direct(beta: Positive) -> StudyMethod:
    """Return the one-step loss before ShiQ's reward shaping, with log pi_ref in its residuals."""
    return StudyMethod("direct", partial(losses.direct, beta=beta), "action")


def soft_q(beta: Positive) -> StudyMethod:
    """Return soft Q-learning with the reference in its backup."""
    return StudyMethod("soft-Q", partial(losses.soft_q, beta=beta), "action", soft_beta=beta)


def copg(beta: Positive) -> StudyMethod:
    """Return CoPG, which learns from pairs of trajectories."""
    return StudyMethod("CoPG", partial(losses.copg, beta=beta), "pair", rows="pair")


def dpo(beta: Positive) -> StudyMethod:
    """Return DPO, which learns from pairs of trajectories and drops ties."""
    return StudyMethod("DPO", partial(losses.dpo, beta=beta), "decided pair", rows="pair")


def dro(beta: Positive) -> StudyMethod:
    """Return DRO without a baseline, as the ShiQ paper runs it."""
    return StudyMethod("DRO", partial(losses.dro, beta=beta), "trajectory")


def dro_group_mean(beta: Positive) -> StudyMethod:
    """Return DRO with the mean reward of a prompt's completions as baseline."""
    return StudyMethod(
        "DRO group mean", partial(losses.dro, beta=beta, baseline="group_mean"), "trajectory", rows="group"
    )


def dro_v(beta: Positive) -> StudyMethod:
    """Return DRO-V, with a learnt value as baseline."""
    return StudyMethod("DRO-V", partial(losses.dro_v, beta=beta), "trajectory", value=True)
