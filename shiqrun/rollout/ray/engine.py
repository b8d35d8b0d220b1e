"""The engine of `rollout=ray` starts Ray actors that sample and score while the trainer learns.

It hands out new weights, takes batches of trajectories, and notices when sampling has failed.
"""

import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError, TrainingError
from shiqrun.rollout.engine import Weights
from shiqrun.rollout.episode_metrics import FAILED
from shiqrun.rollout.ray.actors import BOARD, STORE, Board, SamplerReport, Store, StoreStatus
from shiqrun.rollout.ray.cluster import connect
from shiqrun.rollout.ray.packed_weights import pack_weights
from shiqrun.rollout.ray.sampler import SamplerActor, SamplerSetup
from shiqrun.rollout.settings import RayRollouts
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.rollout.transfers import Transfers, in_dtype

log = logging.getLogger("shiqrun")
ASK_SECONDS = 1.0
"""Seconds after which the trainer, while it waits for trajectories, checks that sampling goes on."""
START_SECONDS, SLOW_SECONDS = 120.0, 1200.0
"""Seconds that the first sampler may take to start: where the cluster lacks resources, and where it has enough."""
TELL_SECONDS = 60.0
"""Seconds between two warnings about a batch that does not come."""
MOST_RESTARTS = 10
"""Restarts of actors between two batches, above which the run ends."""
ANSWER_SECONDS = 10.0
"""Seconds that the store may take to close."""
SECONDS = ("sampling", "rewards", "storing", "waiting", "fetching")
"""The fields of a report that are seconds, as `stats` names them."""
COUNTS = {"weight_transfers": "transfers", "weight_bytes": "bytes", "unscored": "unscored"}


class RayEngine:
    """A Ray engine is an `Engine` whose samplers and experience store are Ray actors.

    Args:
        setup: what the samplers start from.
        directory: of the experience, on this machine.
        n: number of trajectories of an optimiser step.
        after: see `Buffer`.

    Raises:
        InputError: Ray is not installed, no cluster is at the address, this machine has too few resources, settings do
            not fit, or as `Buffer`.
    """

    def __init__(self, setup: SamplerSetup, directory: Path, *, n: int, after: int) -> None:
        self.settings = settings = setup.settings
        self._actors: list[Any] = []
        self._loops: list[Any] = []
        self._reports: dict[str, SamplerReport] = {}
        self._births: set[str] = set()
        self._known = 0  # restarts that were warned of
        self._before, self._since = 0, time.monotonic()  # restarts at the last batch; when sampling began
        self._waited = self._since  # since when the next batch, or a warning about it, is due
        size = portion_size(settings, n)
        self._directory, self._published = directory, Transfers()
        self._cluster = cluster = connect(settings)
        self._ray = cluster.ray
        try:
            if cluster.connected and settings.address is None and not self._has_room():  # our own cluster does not grow
                raise InputError(f"{self._lacking()}; lower rollout.actors, rollout.actor_cpus or rollout.actor_gpus")
            self._begin(setup, directory, size, after)
        except BaseException:
            self.close()
            raise

    def _begin(self, setup: SamplerSetup, directory: Path, size: int, after: int) -> None:
        ray, settings = self._ray, self.settings
        namespace = f"shiqrun-{uuid.uuid4().hex}"
        for_ever = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "namespace": namespace}
        strategies = import_module("ray.util.scheduling_strategies")
        here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)

        def actor(kind: type, *args: Any, **options: Any) -> Any:
            made = ray.remote(kind).options(**for_ever | options).remote(*args)
            self._actors.append(made)
            return made

        self._store = actor(
            Store, str(directory), after, settings.waiting, namespace, name=STORE, scheduling_strategy=here
        )
        self._get(self._store.ready.remote())
        self._board = actor(Board, name=BOARD, scheduling_strategy=here)
        self._told: tuple[list[Any], int, list[Any]] = (
            [ray.put(setup)],
            -1,
            [],
        )  # kept here, because references in Board keep no object alive
        shape = {"num_cpus": settings.actor_cpus, "num_gpus": settings.actor_gpus}
        samplers = [
            actor(
                SamplerActor,
                place,
                namespace,
                size,
                settings.actor_cpus,
                settings.reward_gpus,
                name=f"sampler{place}",
                **shape,
            )
            for place in range(settings.actors)
        ]
        self._loops = [sampler.run.remote() for sampler in samplers]

    def _has_room(self) -> bool:
        return all(asked <= has for asked, has in self._resources().values())

    def _resources(self) -> dict[str, tuple[float, float]]:
        """Return, for each resource, what all actors reserve and what the Ray cluster has."""
        has, s = self._ray.cluster_resources(), self.settings
        asked = {"CPU": s.actors * s.actor_cpus, "GPU": s.actors * (s.actor_gpus + s.reward_gpus)}
        return {name: (number, float(has.get(name, 0))) for name, number in asked.items()}

    def _lacking(self) -> str:
        told = [f"{asked:g} {name} of {has:g}" for name, (asked, has) in self._resources().items()]
        return f"rollout.actors={self.settings.actors} ask for {' and '.join(told)} that the Ray cluster has"

    def next_batch(self, n: int, *, step: int) -> list[SampledTrajectory]:
        """Return the trajectories of an optimiser step, see `Engine.next_batch`."""
        limit = self.settings.max_staleness
        oldest = None if limit is None else step - 1 - limit
        while True:
            self._expect_sampling()
            found, told = self._get(self._store.lease.remote(step, n, oldest, ASK_SECONDS))
            self._know(told)
            if found is not None:
                self._before, self._waited = self.restarts, time.monotonic()
                return [_copy_arrays(trajectory) for trajectory in found]
            self._look()

    def _expect_sampling(self) -> None:
        """Check that no sampler has given up.

        Raises:
            TrainingError: one did; with what it raised.
        """
        ended, _ = self._ray.wait(self._loops, num_returns=1, timeout=0)
        if ended:
            self._get(ended[0])

    def _look(self) -> None:
        """Look for the reason why too few trajectories come.

        Raises:
            TrainingError: actors die again and again, or none can start.
        """
        if time.monotonic() - self._waited > TELL_SECONDS:
            self._waited = time.monotonic()
            log.warning("rollout: still waiting for a batch; Ray's logs are %s", self._cluster.logs)
        waited = time.monotonic() - self._since
        if not self._reports and waited > (SLOW_SECONDS if self._has_room() else START_SECONDS):
            raise TrainingError(f"{self._lacking()}, and none has started in {waited:.0f} seconds")
        if self.restarts - self._before > MOST_RESTARTS:
            raise TrainingError(
                f"rollout: actors were started again {self.restarts - self._before} times since the last step and made "
                f"no batch; out of memory? Ray's logs are {self._cluster.keep_logs(self._directory.parent)}"
            )
        self._tell_board()  # it may have been started again

    def _get(self, reference: Any) -> Any:
        """Return what a Ray actor answers to a call.

        Raises:
            InputError: the actor raised one.
            TrainingError: the actor raised another error, or is dead and cannot be started again.
        """
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if reference not in self._loops and isinstance(cause, InputError):
                raise cause from None
            said = str(cause) if isinstance(cause, InputError | TrainingError) else f"{type(cause).__name__}: {cause}"
            raise TrainingError(f"rollout: {said}") from error
        except self._ray.exceptions.RayError as error:
            raise TrainingError(f"rollout: an actor is dead and does not come back: {error}") from error

    def _know(self, told: StoreStatus) -> None:
        self._births.add(told.birth)
        for process, report in told.reports.items():
            former = self._reports.get(process, SamplerReport())
            if report.unscored > former.unscored:
                log.warning(
                    "the reward gave no answer within rollout.reward_timeout=%g seconds, twice: %d trajectories "
                    "dropped, of the prompts %s",
                    self.settings.reward_timeout,
                    report.unscored - former.unscored,
                    ", ".join(report.prompts),
                )
            self._reports[process] = report
        if self.restarts > self._known:
            log.warning("an actor of the rollouts died and was started again; nothing is lost")
            self._known = self.restarts

    @property
    def restarts(self) -> int:
        """Return the number of actor processes that replaced dead ones."""
        return max(0, len(self._reports) - self.settings.actors) + max(0, len(self._births) - 1)

    def acknowledge(self, step: int) -> None:
        """Acknowledge an optimiser step, see `Engine.acknowledge`."""
        self._get(self._store.acknowledge.remote(step))

    def publish(self, version: int, weights: Weights) -> None:
        """Hand out new policy weights, see `Engine.publish`."""
        began = time.perf_counter()
        packed = pack_weights(in_dtype(weights, self.settings.weight_dtype))
        self._told = (self._told[0], version, [self._ray.put(packed)])
        self._tell_board()
        self._published.add(sum(array.nbytes for _, _, array in packed.values()), time.perf_counter() - began)

    def _tell_board(self) -> None:
        self._get(self._board.tell.remote(*self._told))

    def trained_trajectories(self) -> Iterator[tuple[int, SampledTrajectory]]:
        """Yield all trained trajectories, see `Engine.trained_trajectories`."""
        for chunk in self._store.trained_trajectories.options(num_returns="streaming").remote():
            yield from ((step, _copy_arrays(trajectory)) for step, trajectory in self._get(chunk))

    def stats(self) -> dict[str, float]:
        """Return counts and, over all actors since this session began, seconds, transfers and restarts.

        `seconds/weights` is the trainer's, which hands weights out and waits for no actor.
        """
        counts, told = self._get(self._store.counts.remote())
        self._know(told)
        reports = list(self._reports.values())
        failed = [r.failed for r in reports if r.failed is not None]
        return {
            **counts,
            **{f"seconds/{name}": sum(getattr(r, name) for r in reports) for name in SECONDS},
            **{name: sum(getattr(r, field) for r in reports) for name, field in COUNTS.items()},
            "seconds/weights": self._published.seconds,
            "actor_restarts": self.restarts,
            **({FAILED: sum(failed)} if failed else {}),
        }

    def metrics(self) -> dict[str, float]:
        """Return the size of the weights handed out since the last call, and the trainer's time for it."""
        return self._published.metrics()

    def close(self) -> None:
        """End the Ray actors, and the cluster if this engine started it."""
        ray = self._ray
        if not ray.is_initialized():
            self._cluster.close()
            return
        if self._actors:
            try:  # closed before the actors end, so that the directory is free at once
                ray.get(self._store.close.remote(), timeout=ANSWER_SECONDS)
            except (ray.exceptions.RayError, InputError):
                log.warning("the experience queue did not close in time; every accepted trajectory is on disk")
        if not self._cluster.connected:
            for actor in self._actors:
                ray.kill(actor)
        self._cluster.close()


def _copy_arrays(t: SampledTrajectory) -> SampledTrajectory:
    """Copy a trajectory's arrays: Ray's are read-only, and their memory is freed only with that of the whole reply."""
    return replace(
        t,
        input_ids=t.input_ids.copy(),
        behaviour_logp=t.behaviour_logp.copy(),
        policy_logp=t.policy_logp.copy(),
    )


def portion_size(settings: RayRollouts, n: int) -> int:
    """Return how many trajectories a sampler stores at once: whole groups, and few enough to avoid a deadlock.

    In a deadlock a step would lack trajectories while the queue has no room for a portion.

    Raises:
        InputError: a step takes more than may wait.
    """
    group = settings.samples_per_prompt
    if settings.waiting < n:
        raise InputError(f"rollout.waiting={settings.waiting}: a step takes {n}; let as many wait")
    return max(group, min(settings.batch_size, settings.waiting - n + group) // group * group)
