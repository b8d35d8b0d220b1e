"""Several ranks train on one engine: rank 0 has it, and all get what it answers, or the error that it raises.

So there is one experience store, one queue and one set of leases, and every rank knows the whole batch of a step.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from shiqrun.errors import InputError, TrainingError
from shiqrun.models.sharding import whole
from shiqrun.rollout.engine import Engine, Weights
from shiqrun.rollout.episode_metrics import FAILED
from shiqrun.rollout.local import LocalEngine
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.rollout.worker import Worker
from shiqrun.util import ranks

Answer = TypeVar("Answer")
CHUNK = 1000
"""Trajectories that rank 0 tells the others at a time, where a run is resumed."""
Outcome = tuple[Answer | None, str | None, bool]
"""What was done, or else the message of an error, and whether that was an `InputError`."""


def outcome(act: Callable[[], Answer]) -> "Outcome[Answer]":
    """Do something; return its result, or the error that it raises, as an object that travels between ranks."""
    try:
        return act(), None, False
    except (InputError, TrainingError) as error:
        return None, str(error), isinstance(error, InputError)


def result_of(found: "Outcome[Answer]") -> Answer:
    """Return the result of an outcome, or raise its error.

    Raises:
        InputError: of the outcome.
        TrainingError: likewise.
    """
    result, message, is_input = found
    if message is not None:
        raise InputError(message) if is_input else TrainingError(message)
    return result  # type: ignore[return-value]


def from_rank_0(act: Callable[[], Answer]) -> Answer:
    """Let rank 0 do something; return its result, or raise its error, on all ranks.

    An error that is neither of the two below ends rank 0 alone; the others end as they do where a rank has died.

    Raises:
        InputError: of rank 0.
        TrainingError: likewise.
    """
    found = outcome(act) if ranks.rank() == 0 else None
    told = ranks.broadcast_object(found)
    assert told is not None
    return result_of(told)


class SharedEngine:
    """A shared engine is the `Engine` of every rank, of which rank 0 has the real one.

    Every rank must call its methods, in the same order.

    Args:
        engine: the real one on rank 0, None on the others.
    """

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine

    @property
    def own(self) -> Engine:
        """Return the real engine, on rank 0."""
        assert self.engine is not None
        return self.engine

    def next_batch(self, n: int, *, step: int) -> list[SampledTrajectory]:
        """Return the trajectories of an optimiser step, the same on all ranks; see `Engine.next_batch`."""
        return from_rank_0(lambda: self.own.next_batch(n, step=step))

    def acknowledge(self, step: int) -> None:
        """Acknowledge an optimiser step, see `Engine.acknowledge`."""
        from_rank_0(lambda: self.own.acknowledge(step))

    def publish(self, version: int, weights: Weights) -> None:
        """Hand rank 0's weights to the engine, see `Engine.publish`; all that is gathered has been gathered before."""
        from_rank_0(lambda: self.own.publish(version, weights))

    def trained_trajectories(self) -> Iterator[tuple[int, SampledTrajectory]]:
        """Yield all trained trajectories on every rank, see `Engine.trained_trajectories`."""
        found = self.own.trained_trajectories() if self.engine is not None else iter(())
        while chunk := from_rank_0(lambda: list(islice(found, CHUNK))):
            yield from chunk

    def stats(self) -> dict[str, float]:
        """Return the engine's counts, see `Engine.stats`."""
        return from_rank_0(lambda: self.own.stats())

    def metrics(self) -> dict[str, float]:
        """Return the engine's numbers since the last call, see `Engine.metrics`."""
        return from_rank_0(lambda: self.own.metrics())

    def close(self) -> None:
        """Close the engine where it is."""
        if self.engine is not None:
            self.engine.close()


class TogetherEngine(SharedEngine):
    """A together engine is `rollout=local` on several ranks: each samples its share, and rank 0 stores and leases all.

    The trajectories of a portion are divided by their numbers, prompt by prompt. What is drawn for a number is the same
    on every rank.

    Args:
        worker: of this rank; all have the same place, and count alike.
        engine: on rank 0 the engine of its worker, whose portion the ranks divide; None on the others.
    """

    def __init__(self, worker: Worker, engine: LocalEngine | None) -> None:
        super().__init__(engine)
        self.worker, self.local = worker, engine
        if engine is not None:
            engine.portion *= ranks.world()

    def next_batch(self, n: int, *, step: int) -> list[SampledTrajectory]:
        """Return the trajectories of an optimiser step, sampled by all ranks where the buffer lacks some."""
        while True:
            found, lacking = from_rank_0(lambda: self._lease(n, step))
            if found is not None:
                return found
            self._sample_together(lacking)

    def _lease(self, n: int, step: int) -> tuple[list[SampledTrajectory] | None, int]:
        assert self.local is not None
        found = self.local.lease(n, step)
        return found, self.local.lacking(n, step) if found is None else 0

    def _sample_together(self, n: int) -> None:
        """Sample the next n trajectories, each rank its share, and store them."""
        group, numbers = self.worker.settings.samples_per_prompt, range(self.worker.number, self.worker.number + n)
        mine = share_of(numbers, group, ranks.rank(), ranks.world())
        with whole(self.worker.policy):
            made = outcome(lambda: self.worker.sample_numbers(mine) if mine else [])
        self.worker.number += n
        shares = ranks.gather_on_rank_0(made)
        from_rank_0(lambda: self._store(shares))

    def _store(self, shares: "Sequence[Outcome[list[SampledTrajectory]]]") -> None:
        """Store the shares of all ranks in the order of their numbers; raise the first error that one of them had."""
        assert self.local is not None
        self.local.store([trajectory for share in shares for trajectory in result_of(share)])

    def publish(self, version: int, weights: Weights) -> None:
        """Have the worker of every rank load new policy weights."""
        if self.local is not None:
            self.local.publish(version, weights)
        else:
            self.worker.load(version, weights)

    def stats(self) -> dict[str, float]:
        """Return the engine's counts; of failed episodes those of all ranks."""
        failed = sum(ranks.gather_objects(self.worker.failed))
        return {name: failed if name == FAILED else value for name, value in super().stats().items()}

    def close(self) -> None:
        """Close the engine where it is, and end what the worker has started."""
        super().close()
        self.worker.close()


def share_of(numbers: range, group: int, rank: int, world: int) -> range:
    """Return the numbers that a rank samples: consecutive ones, in whole groups of completions of a prompt.

    Args:
        numbers: of trajectories.
        group: completions of a prompt.
        rank, world: which rank of how many.
    """
    groups = -(-len(numbers) // group)
    return numbers[groups * rank // world * group : groups * (rank + 1) // world * group]
