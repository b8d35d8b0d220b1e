"""A replay pool lets optimiser steps train again on trajectories that earlier steps were trained on."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from shiqrun.rollout.settings import RolloutSettings
from shiqrun.rollout.trajectory import SampledTrajectory

STREAM = 6
"""The stream of random numbers that draws from the replay pool; other draws of a run use other streams."""


class ReplayPool:
    """A replay pool holds the last trajectories that were trained on; later steps draw whole groups of one prompt.

    Args:
        settings: `replay_size` bounds the pool, `max_staleness` the age of what is drawn.
        share: trajectories that a step replays.
        seed: of the draws.
    """

    def __init__(self, settings: RolloutSettings, share: int, seed: int) -> None:
        self.settings, self.share, self.seed = settings, share, seed
        self.pool: deque[list[SampledTrajectory]] = deque(
            maxlen=settings.replay_size // settings.samples_per_prompt or 1
        )

    def add(self, found: Sequence[SampledTrajectory]) -> None:
        """Add the trajectories of a finished optimiser step to the pool, by group."""
        groups: dict[str, list[SampledTrajectory]] = {}
        for t in found:
            groups.setdefault(t.group, []).append(t)
        self.pool.extend(groups.values())

    def draw(self, step: int) -> list[SampledTrajectory]:
        """Return the trajectories that an optimiser step (from 0) replays, drawn without replacement.

        The draw is a function of the seed, the step and the pool; there are fewer where the pool is not filled yet.
        """
        oldest = -1 if self.settings.max_staleness is None else step - self.settings.max_staleness
        there = [group for group in self.pool if group[0].version >= oldest]
        groups = min(len(there), self.share // self.settings.samples_per_prompt)
        if not groups:
            return []
        picked = np.random.default_rng([self.seed, STREAM, step]).choice(len(there), groups, replace=False)
        return [t for i in picked for t in there[int(i)]]
