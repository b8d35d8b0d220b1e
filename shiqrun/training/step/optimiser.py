"""This module has the optimiser of a step: fused AdamW, its learning rates, and the clipping of summed gradients.

Nothing here reads a number off the device, so no step waits for the GPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import AdamW

from shiqrun.models.policy import Policy
from shiqrun.settings import TrainerSettings

FUSED = ("cpu", "cuda")
"""Devices where torch has AdamW as one kernel, which a flag on the device (`found_inf`) can make do nothing."""
PEAK = "initial_lr"
"""The key under which a parameter group keeps its peak learning rate: torch's own name for it, in every checkpoint."""


def adamw(policy: Policy, settings: TrainerSettings, *, value_lr_ratio: float) -> AdamW:
    """Return an AdamW optimiser over all trainable parameters; a value function is a parameter group of its own.

    Args:
        policy: the model, with its value function if it has one.
        settings: learning rate and weight decay.
        value_lr_ratio: learning rate of the value function over the policy's, no unit.
    """
    value = [] if policy.value is None else [p for p in policy.value.parameters() if p.requires_grad]
    own = {id(p) for p in value}
    rest = [p for p in policy.parameters() if p.requires_grad and id(p) not in own]
    rates = ((rest, settings.learning_rate), (value, settings.learning_rate * value_lr_ratio))
    groups: list[dict[str, Any]] = [{"params": params, "lr": rate, PEAK: rate} for params, rate in rates if params]
    fused = all(p.device.type in FUSED for p in (*rest, *value))
    optimizer = AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
    optimizer.register_load_state_dict_pre_hook(_keep_kernel)
    return optimizer


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state with this machine's choice of kernel, whichever machine wrote the checkpoint."""
    fused = optimizer.defaults["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


def set_learning_rates(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set every group's learning rate to a share of its peak; return the first group's, which is the policy's."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * share
    return float(optimizer.param_groups[0]["lr"])


def divide_and_clip(optimizer: torch.optim.Optimizer, scale: Tensor, largest: float | None) -> Tensor:
    """Scale all gradients, clip the gradient norm of each parameter group, and return the former norms, `[groups]`.

    Groups are clipped apart, so that a value function which starts far off does not shrink the policy's step.

    Args:
        optimizer: whose parameters hold gradients that are sums.
        scale: `[]`, one over the units of the step.
        largest: the largest norm, None for no clipping.
    """
    norms = []
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        norm = get_total_norm(gradients) * scale
        clip = 1.0 if largest is None else (largest / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, (scale * clip).to(gradients[0].dtype))
        norms.append(norm)
    return torch.stack(norms)
