"""`rollout=local`: sampling in the training process, when a step needs it."""

import time
from collections.abc import Iterator

from shiqrun.rollout.engine import Weights
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.trajectory import Trajectory
from shiqrun.rollout.worker import Worker


class Local:
    """An engine without processes of its own.

    It samples when a step lacks trajectories, what the steps until the next weights will need, in portions that are
    kept as soon as they are scored; a run that is killed and resumed samples what the whole run would have.

    Args:
        worker: that samples.
        buffer: between sampling and training.
        every: optimiser steps between two sets of weights.
        max_staleness: optimiser steps that the weights of a trajectory may be old, None for any number.
        max_steps: optimiser steps of the run; nothing is sampled for later ones.
    """

    def __init__(
        self, worker: Worker, buffer: Buffer, *, every: int, max_staleness: int | None, max_steps: int
    ) -> None:
        self.worker, self.buffer = worker, buffer
        self.every, self.max_staleness, self.max_steps = every, max_staleness, max_steps
        self.transfers = self.bytes = 0
        self.seconds = {"storing": 0.0}
        group = worker.settings.samples_per_prompt
        self.portion = max(1, worker.settings.batch_size // group) * group

    def next_batch(self, n: int, *, step: int) -> list[Trajectory]:
        """See `Engine`."""
        oldest = None if self.max_staleness is None else step - 1 - self.max_staleness
        while (found := self.buffer.lease(step, n, oldest=oldest)) is None:
            left = min(self.every - (step - 1) % self.every, self.max_steps - step + 1)
            made = self.worker.sample(min(self.portion, n * left - self.buffer.waiting))
            began = time.perf_counter()
            self.buffer.put(made)
            self.seconds["storing"] += time.perf_counter() - began
        return found

    def acknowledge(self, step: int) -> None:
        """See `Engine`."""
        self.buffer.acknowledge(step)

    def publish(self, version: int, weights: Weights) -> None:
        """See `Engine`."""
        self.worker.load(version, weights)
        self.transfers += 1
        self.bytes += sum(value.nbytes for value in weights.values())

    def trained(self) -> Iterator[tuple[int, Trajectory]]:
        """See `Engine`."""
        return self.buffer.trained()

    def stats(self) -> dict[str, float]:
        """See `Engine`."""
        seconds = self.worker.seconds | self.seconds
        return {
            **self.buffer.counts(),
            **{f"seconds/{name}": value for name, value in seconds.items()},
            "weight_transfers": self.transfers,
            "weight_bytes": self.bytes,
        }

    def close(self) -> None:
        """See `Engine`."""
        self.buffer.close()
