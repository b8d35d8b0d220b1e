"""`LossBySource` trains each source of trajectories by its own loss, and weighs the losses into one per step.

A step may mix sources (logged, sampled, annotated, ... trajectories) that different losses train. It minimises

    sum over losses g of  (N_g / N) * total_g / units_g

where total_g and units_g are the loss's sum and count over the whole step, N_g the trajectories that it sees and N all
trajectories: each loss's mean over its own units, weighted by its share of the trajectories.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shiqrun.losses.requirements import unit_count
from shiqrun.losses.residual import trajectory_count
from shiqrun.training.step.sums import Sums
from shiqrun.types import ActionScores, LossTerms, Trajectories

Loss = Callable[..., LossTerms]
DEFAULT = "default"
"""The key of the method's own loss among those of sources."""


@dataclass(frozen=True)
class LossBySource:
    """A `LossBySource` holds the losses of a run: the method's own, and those of sources that another loss trains.

    Attributes:
        default: the method's loss.
        by_source: source -> loss, for sources that the method's loss does not train.
    """

    default: Loss
    by_source: Mapping[str, Loss]

    def loss_of(self, batch: Trajectories) -> Loss:
        """Return the loss that trains the source of a batch."""
        return self.by_source.get(batch.source, self.default)

    def counts(self, batch: Trajectories) -> Sums:
        """Return (units, trajectories) of a batch under the name of its loss, and zeros under the other names.

        The counts need no scores, so they are known before the forward pass.
        """
        name = batch.source if batch.source in self.by_source else DEFAULT
        here = (unit_count(self.loss_of(batch), batch), trajectory_count(batch))
        nothing = (batch.rewards.new_zeros(()),) * 2
        return {other: here if other == name else nothing for other in (DEFAULT, *self.by_source)}

    def step_loss(self, counts: Sums) -> "StepLoss":
        """Return the weighted loss of one step, from counts summed over its micro-batches and ranks."""
        whole = torch.stack([trajectories for _, trajectories in counts.values()]).sum().clamp(min=1)
        weights = {name: seen / whole / units.clamp(min=1) for name, (units, seen) in counts.items()}
        return StepLoss(self, weights)


@dataclass(frozen=True)
class StepLoss:
    """A `StepLoss` is the loss of one optimiser step; with weights, the units of the whole step add up to 1.

    Attributes:
        losses: the losses of the run.
        weights: `[]` each, by name of the loss; empty where one loss trains all sources and keeps its own units.
    """

    losses: LossBySource
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, batch: Trajectories, policy: ActionScores, reference: ActionScores | None) -> LossTerms:
        """Return the weighted loss of a batch, by the loss that trains its source."""
        terms = self.losses.loss_of(batch)(batch, policy, reference)
        weight = self._weight(batch, terms.total.dtype)
        return terms if weight is None else LossTerms(terms.total * weight, terms.count * weight, terms.metrics)

    def unit_count(self, batch: Trajectories) -> Tensor:
        """Return the weighted number of units of a batch, `[]`, before it is scored."""
        units, weight = unit_count(self.losses.loss_of(batch), batch), self._weight(batch, batch.rewards.dtype)
        return units if weight is None else units * weight

    def _weight(self, batch: Trajectories, dtype: torch.dtype) -> Tensor | None:
        weight = self.weights.get(batch.source, self.weights.get(DEFAULT))
        return None if weight is None else weight.to(dtype)
