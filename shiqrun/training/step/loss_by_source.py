"""Which loss trains which source of trajectories, and how sums over different units become one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shiqrun.training.step.sums import Tally
from shiqrun.types import ActionScores, LossTerms, Trajectories

Loss = Callable[..., LossTerms]
OWN = "the method's"


@dataclass(frozen=True)
class Mixture:
    """The loss of each source.

    A step minimises sum_g N_g / N * total_g / units_g: each loss's mean over its own units, weighed by the trajectories
    it sees. With one loss for all that is its mean.

    Attributes:
        loss: the method's.
        by_source: those of sources that are trained by another one.
    """

    loss: Loss
    by_source: Mapping[str, Loss]

    def counts(self, batch: Trajectories) -> Tally:
        """(units, trajectories) by loss, known before any score is: losses count without looking."""
        name = batch.source if batch.source in self.by_source else OWN
        here = (units(self.by_source.get(name, self.loss), batch), batch.action_mask.any(-1).sum())
        nothing = (batch.rewards.new_zeros(()),) * 2
        return {other: here if other == name else nothing for other in (OWN, *self.by_source)}

    def weighed(self, summed: Tally) -> "Weighed":
        """The losses of a step, whose counts are summed over micro-batches and ranks."""
        whole = torch.stack([seen for _, seen in summed.values()]).sum().clamp(min=1)
        weights = {name: seen / whole / number.clamp(min=1) for name, (number, seen) in summed.items()}
        return Weighed(self, weights)


@dataclass(frozen=True)
class Weighed:
    """The losses of a step; with their weights the units of the step add up to 1.

    Attributes:
        mixture: the losses.
        weights: `[]` each, by loss; empty where there is one loss, which is left as it is.
    """

    mixture: Mixture
    weights: Mapping[str, Tensor]

    def __call__(self, batch: Trajectories, policy: ActionScores, reference: ActionScores | None) -> LossTerms:
        """The loss of the batch's source."""
        found = self.mixture.by_source.get(batch.source, self.mixture.loss)(batch, policy, reference)
        weight = self.weights.get(batch.source, self.weights.get(OWN))
        if weight is None:
            return found
        weight = weight.to(found.total.dtype)
        return LossTerms(found.total * weight, found.count * weight, found.metrics)


def units(loss: Loss, batch: Trajectories) -> Tensor:
    """`[]`, what the loss's sum over the batch is divided by."""
    zero = torch.zeros_like(batch.rewards)
    blank = ActionScores(zero, zero, value=zero)
    return loss(batch, blank, blank).count
