"""This module adds sums and counts on the device, reads them in one transfer, and defers checks of finiteness."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shiqrun.types import Trajectories

Sums = dict[str, tuple[Tensor, Tensor]]
"""Sums and counts by name, `[]` each, still on the device; a metric's value is its sum over its count."""
Numbers = dict[str, tuple[float, float]]
"""The same as Python floats."""


def sum_parts(parts: list[Sums]) -> tuple[list[str], Tensor]:
    """Add sums and counts over micro-batches; return the names and the totals, `[names, 2]` float64.

    A name that one micro-batch lacks counts as (0, 0) there, because losses of different sources have different
    metrics.
    """
    names = sorted({name for part in parts for name in part})
    nothing = (torch.zeros((), device=next(iter(parts[0].values()))[0].device),) * 2
    flat = torch.stack([x.double() for part in parts for name in names for x in part.get(name, nothing)])
    return names, flat.view(len(parts), len(names), 2).sum(0)


def tokens_read(batch: Trajectories) -> Tensor:
    """Return the number of tokens of a batch, `[]`, without rows that have no action and only keep a rank busy."""
    return (batch.attention_mask & batch.action_mask.any(-1, keepdim=True)).sum()


def to_numbers(sums: Sums) -> Numbers:
    """Return sums and counts as Python floats, read off the device in one transfer."""
    both = torch.stack([torch.stack(pair) for pair in sums.values()]).tolist()
    return {name: (pair[0], pair[1]) for name, pair in zip(sums, both, strict=True)}


@dataclass(frozen=True)
class PendingStep:
    """A `PendingStep` holds the losses and gradient norms of a step that were not yet read from the device.

    Attributes:
        step: number of the optimiser step, counted from 1.
        update: number of the update on the step's batch, counted from 1.
        losses: `[]` each, the loss sums of this rank's micro-batches.
        total: `[]` float64, their sum over ranks.
        norms: `[groups]` float64, the gradient norm of each group of parameters.
        tokens: `[]` float64, tokens read, over ranks.
    """

    step: int
    update: int
    losses: list[Tensor]
    total: Tensor
    norms: Tensor
    tokens: Tensor

    def error(self, sources: Callable[[int, int], list[str]]) -> str:
        """Return the error message for a step that is not finite.

        Args:
            sources: names the data rows of a step, counted from 0, and a micro-batch of this rank.
        """
        name = f"step {self.step}" + (f", update {self.update}" if self.update > 1 else "")
        bad = [k for k, loss in enumerate(self.losses) if not loss.isfinite()]
        if bad:
            rows = sources(self.step - 1, bad[0])
            return (
                f"{name}: the loss is {float(self.losses[bad[0]])} on a micro-batch of {len(rows)} rows, among them "
                f"{', '.join(rows[:3])}; nothing was updated. Lower trainer.learning_rate or look at these rows"
            )
        if not self.total.isfinite():
            return f"{name}: the loss is not finite on another rank; nothing was updated"
        return f"{name}: the gradient norm is {self.norms.tolist()}; nothing was updated"


class FiniteCheck:
    """A `FiniteCheck` defers the check that losses and gradient norms are finite, to avoid waiting for the GPU.

    Its verdict is the same on all ranks, because it looks at numbers that are summed over ranks.
    """

    def __init__(self) -> None:
        self._pending: list[PendingStep] = []
        self._failed: list[Tensor] = []  # for each pending step: whether it or one before it was not finite

    def add(self, step: PendingStep) -> None:
        """Add a step to the pending ones, without reading a number off the device."""
        failed = ~torch.cat([step.total.view(1), step.norms]).isfinite().all()
        self._pending.append(step)
        self._failed.append(failed | self._failed[-1] if self._failed else failed)

    @property
    def found_inf(self) -> Tensor | None:
        """Return the flag that makes a fused optimiser skip its step, `[]`: 1 or 0; None without a pending step."""
        return self._failed[-1].float() if self._failed else None

    def read(self) -> tuple[int, PendingStep | None]:
        """Read the pending steps; return the number of their tokens and the first step that was not finite, if any."""
        pending, failed = self._pending, self._failed
        self._pending, self._failed = [], []
        if not pending:
            return 0, None
        found = torch.stack([torch.stack([s.tokens for s in pending]), torch.stack(failed).double()])
        tokens, flags = found.tolist()
        return int(sum(tokens)), pending[flags.index(1.0)] if 1.0 in flags else None
