"""`eight_bit_adamw` makes the AdamW of `bitsandbytes`, whose moments have 8 bits.

Dettmers et al. 2021, arXiv 2110.02861. Bfloat16 weights are updated as float32 and rounded stochastically, one
parameter at a time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shiqrun.errors import InputError
from shiqrun.training.step.rounding import HALF, Noise, round_to_bfloat16


def library() -> Any:
    """Return the class of AdamW with 8-bit moments.

    Raises:
        InputError: `bitsandbytes` is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            "trainer.optimizer=adamw_8bit needs the extra `8bit`: pip install 'shiqrun[8bit]'; or set it to adamw"
        ) from error
    return AdamW8bit


def eight_bit_adamw(groups: list[dict[str, Any]], *, lr: float, weight_decay: float, noise: Noise) -> Optimizer:
    """Return AdamW with 8-bit moments; those of parameters below 4,096 numbers stay in float32.

    Its attribute `moment`, (step, update), decides the random bits of stochastic rounding.

    Raises:
        InputError: `bitsandbytes` is not installed.
    """

    class RoundedAdamW8bit(library()):  # type: ignore[misc]
        """A `RoundedAdamW8bit` is AdamW with 8-bit moments whose bfloat16 weights are rounded stochastically."""

        moment = (0, 1)

        @torch.no_grad()
        def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
            """Update one parameter."""
            if p.dtype not in HALF:
                super().update_step(group, p, gindex, pindex)
                return
            assert p.grad is not None
            weights, gradient = p.data, p.grad
            p.grad, p.data = None, weights.float()
            p.grad = gradient.float()
            super().update_step(group, p, gindex, pindex)
            before = sum(len(other["params"]) for other in self.param_groups[:gindex])
            generator = noise.of(self.moment, before + pindex, p.device)
            bits = Noise.bits(weights.numel(), generator) & 0xFFFF
            weights.copy_(round_to_bfloat16(p.data, bits.view_as(weights)))
            p.grad, p.data = None, weights

    made: Optimizer = RoundedAdamW8bit(groups, lr=lr, weight_decay=weight_decay)
    return made
