"""The learning rate as a function of the step."""

import math

from shiqrun.settings import Schedule


def learning_rate_factor(step: int, schedule: Schedule, warmup_steps: int, max_steps: int) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then constant, or down to 0 at max_steps."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]
