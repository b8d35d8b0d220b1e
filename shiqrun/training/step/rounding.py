"""Stochastic rounding lets AdamW train weights that are kept in bfloat16 without a float32 copy.

A bfloat16 number has 8 significant bits, so rounding to the nearest one drops every update below 1/512 of the weight:
at a learning rate of 1e-5 most weights never move. Rounded up with a probability equal to the share of the gap that is
covered, an update moves the weight by its own size on average.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

HALF = (torch.bfloat16, torch.float16)
FUSED = ("cpu", "cuda")
"""Devices where torch has AdamW as one kernel, which a flag on the device (`found_inf`) can make do nothing."""
CHUNK = 1 << 24
"""Numbers of a parameter that are updated at once, which bounds the float32 copies: 64 MiB for each of five."""


def round_to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    """Round float32 numbers to bfloat16 stochastically, so that their expectation stays the same.

    A number that bfloat16 holds stays as it is.

    Args:
        x: `[n]` float32.
        noise: `[n]` int32, uniform from 0 to 65535.
    """
    return ((x.view(torch.int32) + noise) & -65536).view(torch.float32).to(torch.bfloat16)


def local(x: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this rank holds, or a plain tensor itself."""
    return x.to_local() if isinstance(x, DTensor) else x


class Noise:
    """A `Noise` draws the random bits of stochastic rounding: a function of seed, step, update, parameter and shard.

    Ranks that hold the same numbers draw the same bits, so that their copies stay equal.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def of(
        self, moment: tuple[int, int], parameter: int, device: torch.device, shard: Sequence[int] = ()
    ) -> torch.Generator:
        """Return a generator of random numbers for one parameter at a moment (step, update).

        Args:
            moment: step and update.
            parameter: its number.
            device: where the numbers are drawn.
            shard: place of this rank's part of the parameter, empty for a whole one.
        """
        generator = self._generators.setdefault(device, torch.Generator(device))
        return generator.manual_seed(hash((self.seed, *moment, parameter, *shard)) % 2**63)

    @staticmethod
    def bits(size: int, generator: torch.Generator) -> Tensor:
        """Return `[size]` int32 of 32 random bits each."""
        low, high, device = -(2**31), 2**31, generator.device
        return torch.randint(low, high, (size,), dtype=torch.int32, generator=generator, device=device)


class RoundedAdamW(Optimizer):
    """A `RoundedAdamW` is AdamW on bfloat16 weights and moments: computed in float32, rounded stochastically.

    Parameters in float32 (LoRA adapters, value heads) are updated as torch's AdamW does. Of a sharded parameter each
    rank updates its own part.

    Args:
        groups: parameter groups, each with its learning rate.
        lr: learning rate of groups without one.
        weight_decay: per step and unit of learning rate.
        noise: the random bits.

    Attributes:
        found_inf: `[]` on the device: where it is 1, a step changes nothing; None to step in any case.
        moment: (step, update), which decides the random bits; set it before every step.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float, noise: Noise) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8}
        super().__init__(
            groups, {**defaults, "fused": all(p.device.type in FUSED for g in groups for p in g["params"])}
        )
        self.noise, self.moment = noise, (0, 1)
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        numbered = enumerate((group, p) for group in self.param_groups for p in group["params"])
        for number, (group, p) in numbered:
            if p.grad is not None:
                self._update(group, p, number)
        return loss

    def _update(self, group: dict[str, Any], p: Tensor, number: int) -> None:
        """Update one parameter, chunk by chunk."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] = step = state["step"].to(p.device)
        shard = p.device_mesh.get_coordinate() or () if isinstance(p, DTensor) else ()
        generator = self.noise.of(self.moment, number, p.device, shard) if p.dtype in HALF else None
        assert p.grad is not None
        after = step
        for old in _chunks(*map(local, (p, p.grad, state["exp_avg"], state["exp_avg_sq"]))):
            after = step.clone()  # every chunk takes the same step
            new = [x.float() for x in old]
            self._adamw(group, new, after)
            if generator is None:
                continue  # float32: updated in place
            bits = Noise.bits(old[0].numel(), generator)
            old[0].copy_(round_to_bfloat16(new[0], bits & 0xFFFF))
            old[2].copy_(new[2])  # moves by a tenth of the gradient: rounding to the nearest does no harm
            old[3].copy_(round_to_bfloat16(new[3], (bits >> 16) & 0xFFFF))
        step.copy_(after)

    def _adamw(self, group: dict[str, Any], numbers: list[Tensor], step: Tensor) -> None:
        """Take torch's step of AdamW in place, on `[n]` float32 each: weights, gradient, both moments."""
        beta1, beta2 = group["betas"]
        w, g, m, v = ([x] for x in numbers)
        adamw(
            w,
            g,
            m,
            v,
            [],
            [step],
            fused=group["fused"],
            found_inf=self.found_inf if group["fused"] else None,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _chunks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield the same parts of several tensors as flat views."""
    flat = [x.detach().view(-1) for x in tensors]
    yield from (list(parts) for parts in zip(*(x.split(CHUNK) for x in flat), strict=True))
