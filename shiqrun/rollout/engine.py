"""An engine samples trajectories for a run and stores them; this is the interface that training sees."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor

from shiqrun.rollout.trajectory import SampledTrajectory

Weights = Mapping[str, Tensor]
"""The trained parameters of a policy's model by name, on the CPU."""


class Engine(Protocol):
    """An engine samples trajectories with the latest weights it was given, and stores all it has sampled."""

    def next_batch(self, n: int, *, step: int) -> list[SampledTrajectory]:
        """Return n trajectories for an optimiser step, counted from 1, the oldest first; wait until they are sampled.

        They belong to this step until training continues from an earlier checkpoint: asked again for the step, the
        engine returns the same ones.

        Raises:
            TrainingError: sampling or scoring failed.
        """
        ...

    def acknowledge(self, step: int) -> None:
        """Note that an optimiser step, counted from 1, is finished and has trained on its trajectories."""

    def publish(self, version: int, weights: Weights) -> None:
        """Sample with these policy weights from now on; `version` is the number of optimiser steps that made them."""

    def trained_trajectories(self) -> Iterator[tuple[int, SampledTrajectory]]:
        """Yield (step, trajectory) for every trajectory that was trained on so far, in the order of the steps."""
        ...

    def stats(self) -> dict[str, float]:
        """Return counts of trajectories, seconds, and the number and bytes of weight transfers, by name."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return numbers for the logs on the samples and on the weight transfers since the last call, by name."""
        ...

    def close(self) -> None:
        """End the processes and close the files that the engine has opened."""
