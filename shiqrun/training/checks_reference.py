"""This module has the rules on a reference that moves (`algo.reference_every`, `algo.reference_decay`).

See `checks.py`: a rule returns what is wrong and what to set instead, or None.
"""

from shiqrun.rollout.settings import RayRollouts, RolloutSettings
from shiqrun.training.plan import Plan


def decay_has_a_move(plan: Plan) -> str | None:
    """A decay says how far the reference moves, which it does only every so many steps."""
    if plan.algo.reference_decay and plan.algo.reference_every is None:
        return (
            f"algo.reference_decay={plan.algo.reference_decay:g}, but the reference never moves; set "
            "algo.reference_every=N (optimiser steps), or leave it out"
        )
    return None


def moving_reference_is_a_copy(plan: Plan) -> str | None:
    """A reference that moves is a copy of the policy: a cache and a base model without its adapter stay."""
    why = {
        "cached": "no cache has the scores of a reference that moves; set algo.reference=frozen",
        "adapter": "the policy without its adapter cannot move; set algo.reference=frozen",
        "none": f"algo={plan.name} has no reference; leave it out",
    }.get(plan.algo.reference)
    return f"algo.reference_every={plan.algo.reference_every}: {why}" if plan.algo.reference_every and why else None


def moving_reference_is_whole(plan: Plan) -> str | None:
    """Sharded and 4-bit weights are not copied between models."""
    asked = f"algo.reference_every={plan.algo.reference_every}"
    if plan.algo.reference_every and plan.hardware.strategy == "fsdp":
        return f"{asked}: ranks that share weights do not move the reference's; set hardware=ddp, or leave it out"
    if plan.algo.reference_every and getattr(plan.choice, "quantize", None):
        return f"{asked}: a reference of 4-bit weights does not move; set model.quantize=null, or leave it out"
    if plan.algo.reference_decay and plan.hardware.weights == "bf16":
        return (
            f"algo.reference_decay={plan.algo.reference_decay:g}: bfloat16 weights lose the small steps of an average; "
            "set hardware.weights=fp32, or algo.reference_decay=0"
        )
    return None


def moving_reference_has_no_estimates(plan: Plan) -> str | None:
    """Prompt values and quantiles are estimated once, from completions of the first reference."""
    if plan.algo.reference_every and plan.reads_values:
        return (
            f"algo.reference_every={plan.algo.reference_every}: algo={plan.name} reads what the first reference earns, "
            "which is not estimated again when it moves; leave it out, or take algo=copg or agro"
        )
    return None


def reference_is_the_sampler(plan: Plan, rollout: RolloutSettings) -> str | None:
    """A reference that is the sampler gets the policy's weights when the sampler does, and no older samples count."""
    every = rollout.model_update_interval
    if "sampler_reference" not in plan.needs:
        return None
    asked = f"algo={plan.name} takes the policy that samples for its reference"
    if plan.algo.reference_every != every or plan.algo.reference_decay:
        return f"{asked}: set algo.reference_every={every} (rollout.model_update_interval) and algo.reference_decay=0"
    if isinstance(rollout, RayRollouts) and rollout.max_staleness != every - 1:
        return f"{asked}, and actors send samples of an older one too: set rollout.max_staleness={every - 1}"
    return None


RULES = (
    moving_reference_is_a_copy,
    moving_reference_is_whole,
    moving_reference_has_no_estimates,
    decay_has_a_move,
)
"""The rules on a moving reference, in the order in which they are checked."""
