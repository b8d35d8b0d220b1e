"""The losses of `shiqrun.losses` as the studies call them: what each counts, and what rows it learns from."""

from functools import partial

from shiqrun import losses
from shiqrun.toy.learner import Method
from shiqrun.types import Positive


def shiq(beta: Positive, lam: float = 1.0) -> Method:
    """ShiQ, or ShiQ(lambda)."""
    name = "ShiQ" if lam == 1 else f"ShiQ({lam:g})"
    return Method(name, partial(losses.shiq, beta=beta, lam=lam), "action")


def shiq_ms(beta: Positive) -> Method:
    """One-step ShiQ."""
    return Method("ShiQ/ms", partial(losses.shiq_ms, beta=beta), "action")


def shiq_tk(beta: Positive) -> Method:
    """Trajectory-level ShiQ."""
    return Method("ShiQ/tk", partial(losses.shiq_tk, beta=beta), "trajectory")


def shiq_init(beta: Positive) -> Method:
    """ShiQ without its reward shaping."""
    return Method("ShiQ/init", partial(losses.shiq_init, beta=beta), "action")


def direct(beta: Positive) -> Method:
    """The rung between soft-Q and ShiQ."""
    return Method("direct", partial(losses.direct, beta=beta), "action")


def soft_q(beta: Positive) -> Method:
    """Soft-Q with the reference in its backup."""
    return Method("soft-Q", partial(losses.soft_q, beta=beta), "action", soft_beta=beta)


def copg(beta: Positive) -> Method:
    """CoPG on pairs."""
    return Method("CoPG", partial(losses.copg, beta=beta), "pair", rows="pair")


def dpo(beta: Positive) -> Method:
    """DPO on pairs, whose ties it drops."""
    return Method("DPO", partial(losses.dpo, beta=beta), "decided pair", rows="pair")


def dro(beta: Positive) -> Method:
    """DRO without a value, as the ShiQ paper runs it."""
    return Method("DRO", partial(losses.dro, beta=beta), "trajectory")


def dro_group_mean(beta: Positive) -> Method:
    """DRO with the mean over a prompt's completions."""
    return Method("DRO group mean", partial(losses.dro, beta=beta, baseline="group_mean"), "trajectory", rows="group")


def dro_v(beta: Positive) -> Method:
    """DRO with a learnt value."""
    return Method("DRO-V", partial(losses.dro_v, beta=beta), "trajectory", value=True)
