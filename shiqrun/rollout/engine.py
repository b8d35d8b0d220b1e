"""What every engine of rollouts offers to training."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor

from shiqrun.rollout.trajectory import Trajectory

Weights = Mapping[str, Tensor]
"""The trained parameters of a policy's model by name, on the CPU."""


class Engine(Protocol):
    """Samples by the latest weights it was given, and keeps what it has sampled."""

    def next_batch(self, n: int, *, step: int) -> list[Trajectory]:
        """The n trajectories of an optimiser step (counted from 1), sampled before others first; waits for them.

        They are this step's until training goes on from an earlier checkpoint: asked again, it gives the same ones.

        Raises:
            TrainingError: sampling or scoring failed.
        """
        ...

    def acknowledge(self, step: int) -> None:
        """The step is done."""

    def publish(self, version: int, weights: Weights) -> None:
        """New weights to sample by, after `version` optimiser steps."""

    def trained(self) -> Iterator[tuple[int, Trajectory]]:
        """(step, trajectory) of all that was trained on up to now, by step."""
        ...

    def stats(self) -> dict[str, float]:
        """Numbers by name: counts of trajectories, seconds, weight transfers and bytes."""
        ...

    def close(self) -> None:
        """Ends what it has started."""
