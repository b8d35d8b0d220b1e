"""The optimiser's part of a step: fused AdamW, its learning rate, and summed gradients made a mean and clipped.

Nothing here reads a number off the device, so that no step waits for one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import AdamW

from shiqrun.models.policy import Policy
from shiqrun.settings import TrainerSettings

FUSED = ("cpu", "cuda")
"""Where torch has AdamW in one kernel, whose step a flag on the device (`found_inf`) turns into none."""
PEAK = "initial_lr"
"""Where a group keeps the peak of its schedule: torch's own name for it, in every checkpoint."""


def adamw(policy: Policy, settings: TrainerSettings, *, value_lr_ratio: float) -> AdamW:
    """AdamW on what requires a gradient; a value function is a group of its own."""
    value = [] if policy.value is None else [p for p in policy.value.parameters() if p.requires_grad]
    own = {id(p) for p in value}
    rest = [p for p in policy.parameters() if p.requires_grad and id(p) not in own]
    rates = ((rest, settings.learning_rate), (value, settings.learning_rate * value_lr_ratio))
    groups: list[dict[str, Any]] = [{"params": params, "lr": rate, PEAK: rate} for params, rate in rates if params]
    fused = all(p.device.type in FUSED for p in (*rest, *value))
    optimizer = AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
    optimizer.register_load_state_dict_pre_hook(_with_own_kernel)
    return optimizer


def _with_own_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint goes on in the kernel that this machine has, whichever wrote it."""
    fused = optimizer.defaults["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Sets every group to a share of its peak; returns the first group's, the policy's."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * share
    return float(optimizer.param_groups[0]["lr"])


def divide_and_clip(optimizer: torch.optim.Optimizer, scale: Tensor, largest: float | None) -> Tensor:
    """Multiplies every gradient with `scale`, `[]`, and clips each group apart; the norms before, `[groups]`.

    Apart, so that a value that starts far off does not shrink the policy's step.
    """
    norms = []
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        norm = get_total_norm(gradients) * scale
        clip = 1.0 if largest is None else (largest / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, (scale * clip).to(gradients[0].dtype))
        norms.append(norm)
    return torch.stack(norms)
