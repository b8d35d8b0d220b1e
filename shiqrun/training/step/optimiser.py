"""This module has the optimiser of a step: AdamW by its states' precision, its learning rates, and gradient clipping.

Nothing here reads a number off the device, so no step waits for the GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from shiqrun.models.policy import Policy
from shiqrun.settings import TrainerSettings
from shiqrun.training.step.eight_bit import eight_bit_adamw
from shiqrun.training.step.rounding import FUSED, HALF, Noise, RoundedAdamW, local

PEAK = "initial_lr"
"""The key under which a parameter group keeps its peak learning rate: torch's own name for it, in every checkpoint."""


def adamw(policy: Policy, settings: TrainerSettings, *, value_lr_ratio: float, seed: int = 0) -> Optimizer:
    """Return an AdamW optimiser over all trainable parameters; a value function is a parameter group of its own.

    Bfloat16 weights are rounded stochastically: torch's AdamW would leave most of them where they are.

    Args:
        policy: the model, with its value function if it has one.
        settings: which AdamW, learning rate and weight decay.
        value_lr_ratio: learning rate of the value function over the policy's, no unit.
        seed: of the random bits of stochastic rounding.

    Raises:
        InputError: 8-bit states without the library that has them.
    """
    value = [] if policy.value is None else [p for p in policy.value.parameters() if p.requires_grad]
    own = {id(p) for p in value}
    rest = [p for p in policy.parameters() if p.requires_grad and id(p) not in own]
    rates = ((rest, settings.learning_rate), (value, settings.learning_rate * value_lr_ratio))
    groups: list[dict[str, Any]] = [{"params": params, "lr": rate, PEAK: rate} for params, rate in rates if params]
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw_8bit":
        return eight_bit_adamw(groups, **options, noise=Noise(seed))
    optimizer: Optimizer
    if any(p.dtype in HALF for p in (*rest, *value)):
        optimizer = RoundedAdamW(groups, **options, noise=Noise(seed))
    else:
        optimizer = AdamW(groups, **options, fused=all(p.device.type in FUSED for p in (*rest, *value)))
    optimizer.register_load_state_dict_pre_hook(_keep_kernel)
    return optimizer


def heeds_flag(optimizer: Optimizer) -> bool:
    """Return whether an optimiser does nothing where the flag `found_inf` on the device is 1."""
    return bool(optimizer.defaults.get("fused"))


def _keep_kernel(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state with this machine's choice of kernel, whichever machine wrote the checkpoint."""
    fused = optimizer.defaults["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


def set_learning_rates(optimizer: Optimizer, share: float) -> float:
    """Set every group's learning rate to a share of its peak; return the first group's, which is the policy's."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * share
    return float(optimizer.param_groups[0]["lr"])


def add_gradients(module: LightningModule, total: Tensor) -> None:
    """Add the gradient of a sum to the parameters of a module; DDP is told first, and nobody where no rank waits."""
    if module.trainer.world_size > 1:
        module.manual_backward(total)
    else:
        total.backward()


def divide_and_clip(optimizer: Optimizer, scale: Tensor, largest: float | None) -> Tensor:
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
        norm = _total_norm(gradients) * scale
        clip = 1.0 if largest is None else (largest / (norm + 1e-6)).clamp(max=1.0)
        for same in _by_dtype([local(g) for g in gradients]):
            torch._foreach_mul_(same, (scale * clip).to(torch.promote_types(same[0].dtype, torch.float32)))
        norms.append(norm)
    return torch.stack(norms)


def _total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, `[]`, in float32 also for those in bfloat16."""
    norms: list[Tensor] = []
    for same in _by_dtype(gradients):
        norms += torch._foreach_norm(same, 2, dtype=torch.promote_types(same[0].dtype, torch.float32))
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total.full_tensor() if isinstance(total, DTensor) else total


def _by_dtype(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the gradients in lists of one dtype each."""
    found: dict[torch.dtype, list[Tensor]] = {}
    for g in gradients:
        found.setdefault(g.dtype, []).append(g)
    return list(found.values())
