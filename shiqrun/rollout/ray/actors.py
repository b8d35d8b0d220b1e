"""Two Ray actors join samplers and trainer: `Store` has the queue of trajectories, `Board` the newest weights.

The classes are plain; `rollout.ray.engine` makes actors of them. They are found by name, not by handle, so that an
actor that was started again is found again.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from shiqrun.errors import InputError
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.util.atomic import write_atomic

STORE, BOARD = "store", "board"
"""The names of the actors."""
SESSION = "SESSION"
PAUSE_SECONDS = 0.02
"""Seconds between two looks at what is waited for."""
CHUNK = 256
"""Number of trajectories sent at once."""


@dataclass(frozen=True)
class SamplerReport:
    """A sampler report counts seconds, weight transfers and losses of a sampler since its process began.

    Attributes:
        sampling, rewards, storing, waiting, fetching: seconds; `waiting` is for room in the queue, `fetching` weights.
        transfers, bytes: number and size of the weights that it fetched.
        unscored: number of trajectories dropped because the reward gave no answer.
        failed: number of episodes dropped because their environment could not play on; None where none is played.
        prompts: ids of the prompts of those dropped last.
    """

    sampling: float = 0.0
    rewards: float = 0.0
    storing: float = 0.0
    waiting: float = 0.0
    fetching: float = 0.0
    transfers: int = 0
    bytes: int = 0
    unscored: int = 0
    failed: int | None = None
    prompts: tuple[str, ...] = ()


class StoreStatus(NamedTuple):
    """A store status holds the id of the store's process, which a restart changes, and each sampler's last report."""

    birth: str
    reports: dict[str, SamplerReport]


class Store:
    """The store is the Ray actor that owns the experience queue (`Buffer`).

    Its methods may be called again after the actor was started again: each has its effect once.

    Args:
        directory: of the experience, on this machine.
        after: see `Buffer`; ignored where the actor was started again within a session, because the trainer then lives.
        room: number of trajectories that may wait.
        session: id of the trainer's session; the file SESSION in the directory holds the last one.
    """

    def __init__(self, directory: str, after: int, room: int, session: str) -> None:
        self.room = room
        self.status = StoreStatus(uuid.uuid4().hex, {})
        self._file, self._session = Path(directory) / SESSION, session
        former = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        self._opened: Buffer | InputError
        try:
            self._opened = Buffer(Path(directory), after=None if former.get("session") == session else after)
        except InputError as error:  # raised in a constructor, it would reach the trainer as text
            self._opened = error
        else:
            found = [name.rpartition("-") for name in self._opened.workers()]
            had = max((int(number) for _, _, number in found if number.isdecimal()), default=-1)
            self._incarnation = max(1 + had, former.get("incarnation", 0))
            self._note()

    def _note(self) -> None:
        text = json.dumps({"session": self._session, "incarnation": self._incarnation})
        write_atomic(self._file, text)

    @property
    def buffer(self) -> Buffer:
        """Return the experience queue.

        Raises:
            InputError: as `Buffer`.
        """
        if isinstance(self._opened, InputError):
            raise self._opened
        return self._opened

    async def ready(self) -> None:
        """Return as soon as the experience queue is open.

        Raises:
            InputError: as `Buffer`.
        """
        assert self.buffer

    async def incarnation(self) -> int:
        """Return an incarnation number that no worker of this run's experience has had."""
        self._incarnation += 1
        self._note()
        return self._incarnation - 1

    async def report(self, process: str, report: SamplerReport) -> None:
        """Take the latest report of a sampler's process."""
        self.status.reports[process] = report

    async def put(self, trajectories: Sequence[SampledTrajectory]) -> float:
        """Wait for room, store the trajectories, and return the seconds that storing took."""
        while self.buffer.waiting + len(trajectories) > self.room:
            await asyncio.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        self.buffer.put(trajectories)
        return time.perf_counter() - began

    async def lease(
        self, step: int, n: int, oldest: int | None, seconds: float
    ) -> tuple[list[SampledTrajectory] | None, StoreStatus]:
        """Return n trajectories as `Buffer.lease`, None if fewer wait after so many seconds; and the status."""
        end = time.monotonic() + seconds
        while (found := self.buffer.lease(step, n, oldest=oldest)) is None and time.monotonic() < end:
            await asyncio.sleep(PAUSE_SECONDS)
        return found, self.status

    async def acknowledge(self, step: int) -> None:
        """Acknowledge an optimiser step, as `Buffer.acknowledge`."""
        self.buffer.acknowledge(step)

    async def trained_trajectories(self) -> AsyncIterator[list[tuple[int, SampledTrajectory]]]:
        """Yield the trained trajectories, as `Buffer.trained_trajectories`, `CHUNK` at a time."""
        found = self.buffer.trained_trajectories()
        while chunk := list(islice(found, CHUNK)):
            yield chunk

    async def counts(self) -> tuple[dict[str, int], StoreStatus]:
        """Return the counts of trajectories, as `Buffer.counts`, and the status."""
        return self.buffer.counts(), self.status

    async def close(self) -> None:
        """Close the experience queue; a sampler that puts from now on waits for ever."""
        self.room = -1
        if isinstance(self._opened, Buffer):
            self._opened.close()


class Board:
    """The board is the Ray actor that holds references to the samplers' setup and the newest weights.

    The references are in lists, because Ray replaces a bare one by its object. Started again, the actor knows nothing
    until the trainer tells it again.
    """

    def __init__(self) -> None:
        self._setup: list[Any] = []
        self._version, self._weights = -1, list[Any]()

    def tell(self, setup: list[Any], version: int, weights: list[Any]) -> None:
        """Take the setup and the newest weights; telling them again changes nothing."""
        self._setup, self._version, self._weights = setup, version, weights

    def setup(self) -> list[Any]:
        """Return a reference to the `SamplerSetup` in a list, empty until the trainer has told it."""
        return self._setup

    def newest(self, known: int) -> tuple[int, list[Any]]:
        """Return (version, [reference to packed weights]), or (known, []) if none is newer than version `known`."""
        return (self._version, self._weights) if self._version > known else (known, [])
