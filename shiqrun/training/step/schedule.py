"""A learning-rate schedule gives the share of the peak learning rate at every optimiser step."""

import math

from shiqrun.settings import Schedule


def learning_rate_factor(step: int, schedule: Schedule, warmup_steps: int, max_steps: int) -> float:
    """Return the share of the peak learning rate at a step, from 0 to 1: linear warm-up, then the schedule.

    Args:
        step: the optimiser step, counted from 0.
        schedule: after the warm-up: "constant", or "linear" or "cosine" down to 0 at `max_steps`.
        warmup_steps: steps of the warm-up.
        max_steps: where the schedule ends.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]
