"""This module has the rules on runs that sample while several processes train.

See `checks.py`: a rule returns what is wrong and what to set instead, or None.
"""

from shiqrun.losses.requirements import needs_of
from shiqrun.rollout.settings import RolloutSettings, VllmRollouts
from shiqrun.training.plan import Plan
from shiqrun.training.source_losses import name_of_loss, source_losses


def shared_weights_score_no_served_samples(plan: Plan, rollout: RolloutSettings) -> str | None:
    """The samples of a server are scored by one rank, which needs the whole policy for that."""
    if isinstance(rollout, VllmRollouts) and plan.hardware.strategy == "fsdp":
        return (
            "rollout=vllm: hardware=fsdp leaves no process the whole policy, which scores the server's samples; set "
            "hardware=ddp, or rollout=ray (or local)"
        )
    return None


def all_losses_train_the_value(plan: Plan, rollout: RolloutSettings) -> str | None:
    """Processes with whole weights exchange gradients behind the last micro-batch, which must reach all of them."""
    if plan.hardware.processes == 1 or plan.hardware.strategy == "fsdp" or "value" not in plan.needs:
        return None
    for source, loss in source_losses(rollout, plan.loss).items():
        if "value" not in needs_of(loss):
            return (
                f"rollout.losses.{source}={name_of_loss(loss)} does not train the value function of algo={plan.name}, "
                "which several processes exchange in each step; set hardware.devices=1, or hardware=fsdp"
            )
    return None
