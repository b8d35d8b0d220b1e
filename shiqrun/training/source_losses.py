"""`rollout.losses` names losses for sources of trajectories that another loss than the method's trains."""

import inspect
from functools import partial
from typing import Any

from shiqrun import losses
from shiqrun.losses.requirements import hyperparameters
from shiqrun.losses.soft_policy import monte_carlo
from shiqrun.rollout.settings import RolloutSettings

LOSSES = {name: getattr(losses, name) for name in losses.__all__} | {"monte_carlo": monte_carlo}
"""The losses that a source may be trained by, by name."""


def source_losses(rollout: RolloutSettings | None, loss: partial[Any]) -> dict[str, partial[Any]]:
    """Return, by source, the losses of those sources that the method's loss does not train.

    Each is bound to the method's hyperparameters that it understands.

    Args:
        rollout: settings of sampling; None without.
        loss: the method's.

    Raises:
        KeyError: there is no loss of that name; `checks_rollout.source_loss_exists` finds it before.
    """
    found = {}
    for source, name in (rollout.losses if rollout else {}).items():
        if name is not None:
            own = inspect.signature(LOSSES[name]).parameters
            found[str(source)] = partial(LOSSES[name], **{k: v for k, v in hyperparameters(loss).items() if k in own})
    return found


def name_of_loss(loss: partial[Any]) -> str:
    """Return the name in `LOSSES` of a source's loss."""
    return next(name for name, function in LOSSES.items() if function is loss.func)
