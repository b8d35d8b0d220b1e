"""The engine `rollout=local` samples in the training process, when an optimiser step needs trajectories."""

import time
from collections.abc import Iterator, Sequence

from shiqrun.rollout.engine import Weights
from shiqrun.rollout.episode_metrics import FAILED
from shiqrun.rollout.episode_worker import EpisodeWorker
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.rollout.transfers import Transfers
from shiqrun.rollout.worker import Worker


class LocalEngine:
    """A local engine samples trajectories in the training process, without processes of its own.

    When a step lacks trajectories, it samples what the steps until the next weights will need, in portions that are
    stored as soon as they are scored. A run that is killed and resumed samples the same as an uninterrupted one.

    Args:
        worker: samples and scores.
        buffer: stores trajectories between sampling and training.
        every: optimiser steps between two sets of weights.
        max_staleness: the most optimiser steps that a trajectory's weights may be old; None for any number.
        max_steps: optimiser steps of the run; nothing is sampled for later ones.
    """

    def __init__(
        self, worker: Worker, buffer: Buffer, *, every: int, max_staleness: int | None, max_steps: int
    ) -> None:
        self.worker, self.buffer = worker, buffer
        self.every, self.max_staleness, self.max_steps = every, max_staleness, max_steps
        self.transfers = Transfers()
        self.seconds = {"storing": 0.0}
        group = worker.settings.samples_per_prompt
        self.portion = max(1, worker.settings.batch_size // group) * group

    def next_batch(self, n: int, *, step: int) -> list[SampledTrajectory]:
        """Return n trajectories for an optimiser step, sampling them first where the buffer lacks them."""
        while (found := self.lease(n, step)) is None:
            self.store(self._sample(self.lacking(n, step), step))
        return found

    def lease(self, n: int, step: int) -> list[SampledTrajectory] | None:
        """Return n trajectories for an optimiser step, None where the buffer lacks some."""
        oldest = None if self.max_staleness is None else step - 1 - self.max_staleness
        return self.buffer.lease(step, n, oldest=oldest)

    def lacking(self, n: int, step: int) -> int:
        """Return how many trajectories to sample next: at most a portion of what steps need until the next weights."""
        left = min(self.every - (step - 1) % self.every, self.max_steps - step + 1)
        return min(self.portion, n * left - self.buffer.waiting)

    def store(self, made: Sequence[SampledTrajectory]) -> None:
        """Put sampled trajectories into the buffer."""
        began = time.perf_counter()
        self.buffer.put(made)
        self.seconds["storing"] += time.perf_counter() - began

    def _sample(self, n: int, step: int) -> list[SampledTrajectory]:
        """Sample and score n trajectories, because an optimiser step lacks some."""
        return self.worker.sample(n)

    def acknowledge(self, step: int) -> None:
        """Note that an optimiser step is finished and has trained on its trajectories."""
        self.buffer.acknowledge(step)

    def publish(self, version: int, weights: Weights) -> None:
        """Have the worker load new policy weights."""
        began = time.perf_counter()
        size, seconds = self.worker.load(version, weights), time.perf_counter() - began
        self.transfers.add(size, seconds)

    def trained_trajectories(self) -> Iterator[tuple[int, SampledTrajectory]]:
        """Yield (step, trajectory) for every trajectory that was trained on so far."""
        return self.buffer.trained_trajectories()

    def stats(self) -> dict[str, float]:
        """Return counts of trajectories, seconds, and the number and bytes of weight transfers, by name."""
        seconds = self.worker.seconds | self.seconds
        return {
            **self.buffer.counts(),
            **{f"seconds/{name}": value for name, value in seconds.items()},
            **self.transfers.totals(),
            **({FAILED: self.worker.failed} if isinstance(self.worker, EpisodeWorker) else {}),
        }

    def metrics(self) -> dict[str, float]:
        """Return the size and the time of the weight transfers since the last call."""
        return self.transfers.metrics()

    def close(self) -> None:
        """Close the buffer of trajectories, and end what the worker has started."""
        self.buffer.close()
        self.worker.close()
