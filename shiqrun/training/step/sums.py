"""Sums and counts while they are still on the device: added up, read in one go, and whether a step was finite."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Tally = dict[str, tuple[Tensor, Tensor]]
"""name -> (sum, count), `[]` each."""


def added(tallies: list[Tally]) -> tuple[list[str], Tensor]:
    """The names, and the sums and counts over all tallies, `[names, 2]` float64.

    A name that one tally lacks counts as nothing there: losses of different sources measure different things.
    """
    names = sorted({name for tally in tallies for name in tally})
    nothing = (torch.zeros((), device=next(iter(tallies[0].values()))[0].device),) * 2
    flat = torch.stack([x.double() for tally in tallies for name in names for x in tally.get(name, nothing)])
    return names, flat.view(len(tallies), len(names), 2).sum(0)


def floats(tally: Tally) -> dict[str, tuple[float, float]]:
    """The same numbers, read off the device at once."""
    both = torch.stack([torch.stack(pair) for pair in tally.values()]).tolist()
    return {name: (pair[0], pair[1]) for name, pair in zip(tally, both, strict=True)}


@dataclass(frozen=True)
class Unread:
    """What a step leaves on the device to be looked at later.

    Attributes:
        step: counted from 1.
        update: on its batch, counted from 1.
        losses: `[]` each, the sums of this rank's micro-batches.
        total: `[]` float64, their sum over ranks.
        norms: `[groups]` float64, of the gradient.
        tokens: `[]` float64, over ranks.
    """

    step: int
    update: int
    losses: list[Tensor]
    total: Tensor
    norms: Tensor
    tokens: Tensor

    def complaint(self, sources: Callable[[int, int], list[str]]) -> str:
        """What of it is not finite; `sources` names this rank's rows of a step, counted from 0, and micro-batch."""
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


class Watch:
    """The steps that nobody has looked at, and whether one of them was not finite: on all ranks the same."""

    def __init__(self) -> None:
        self._steps: list[Unread] = []
        self._broken: list[Tensor] = []  # of each step: it or one before it

    def add(self, step: Unread) -> None:
        """Notes a step, without asking the device for anything."""
        broken = ~torch.cat([step.total.view(1), step.norms]).isfinite().all()
        self._steps.append(step)
        self._broken.append(broken | self._broken[-1] if self._broken else broken)

    @property
    def found_inf(self) -> Tensor | None:
        """`[]`, 1 where an unread step was not finite, else 0: what a fused optimiser reads; None with none unread."""
        return self._broken[-1].float() if self._broken else None

    def read(self) -> tuple[int, Unread | None]:
        """Tokens of the unread steps, and the first of them that was not finite; they are read then."""
        steps, broken = self._steps, self._broken
        self._steps, self._broken = [], []
        if not steps:
            return 0, None
        found = torch.stack([torch.stack([s.tokens for s in steps]), torch.stack(broken).double()])
        tokens, flags = found.tolist()
        return int(sum(tokens)), steps[flags.index(1.0)] if 1.0 in flags else None
