"""The actors of `rollout=ray` that samplers and the trainer meet at: the buffer, and where the newest weights are.

The classes are plain; `rollout.ray.engine` makes actors of them. They are found by name, not by handle, so that one
that was started again is found again.
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
from shiqrun.rollout.trajectory import Trajectory
from shiqrun.util.atomic import write_atomic

STORE, BOARD = "store", "board"
"""Names of the actors."""
SESSION = "SESSION"
PAUSE_SECONDS = 0.02
"""Between two looks at what is waited for."""
CHUNK = 256
"""Trajectories sent at once."""


@dataclass(frozen=True)
class Report:
    """What a sampler has done since its process began.

    Attributes:
        sampling, rewards, storing, waiting: seconds; waiting is for room in the buffer.
        transfers, bytes: of weights that it fetched.
        unscored: trajectories dropped because the reward gave no answer.
        prompts: ids of their prompts, the last ones.
    """

    sampling: float = 0.0
    rewards: float = 0.0
    storing: float = 0.0
    waiting: float = 0.0
    transfers: int = 0
    bytes: int = 0
    unscored: int = 0
    prompts: tuple[str, ...] = ()


class Told(NamedTuple):
    """What the store knows of the others: an id of its own process, and the last report of each sampler's process."""

    birth: str
    reports: dict[str, Report]


class Store:
    """The `Buffer` as an actor. Methods may be called again after a restart: each is done once.

    Args:
        directory: of the experience, on this machine.
        after: see `Buffer`; does not count where the actor was started again in a session: then the trainer lives.
        room: trajectories that wait at most.
        session: of the trainer; a file beside the experience knows the last one.
    """

    def __init__(self, directory: str, after: int, room: int, session: str) -> None:
        self.room = room
        self.told = Told(uuid.uuid4().hex, {})
        self._file, self._session = Path(directory) / SESSION, session
        former = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        self._opened: Buffer | InputError
        try:
            self._opened = Buffer(Path(directory), after=None if former.get("session") == session else after)
        except InputError as error:  # raised here, it would reach the trainer as text
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
        """Once it is open.

        Raises:
            InputError: as `Buffer`.
        """
        if isinstance(self._opened, InputError):
            raise self._opened
        return self._opened

    async def ready(self) -> None:
        """Nothing, once it is open.

        Raises:
            InputError: as `Buffer`.
        """
        assert self.buffer

    async def incarnation(self) -> int:
        """A number that no worker has had or been given before."""
        self._incarnation += 1
        self._note()
        return self._incarnation - 1

    async def report(self, process: str, report: Report) -> None:
        """The latest of a sampler's process."""
        self.told.reports[process] = report

    async def put(self, trajectories: Sequence[Trajectory]) -> float:
        """Seconds that storing took; waits for room before."""
        while self.buffer.waiting + len(trajectories) > self.room:
            await asyncio.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        self.buffer.put(trajectories)
        return time.perf_counter() - began

    async def lease(
        self, step: int, n: int, oldest: int | None, seconds: float
    ) -> tuple[list[Trajectory] | None, Told]:
        """As `Buffer.lease`, after so many seconds at most; None if there are still too few."""
        end = time.monotonic() + seconds
        while (found := self.buffer.lease(step, n, oldest=oldest)) is None and time.monotonic() < end:
            await asyncio.sleep(PAUSE_SECONDS)
        return found, self.told

    async def acknowledge(self, step: int) -> None:
        """See `Buffer`."""
        self.buffer.acknowledge(step)

    async def trained(self) -> AsyncIterator[list[tuple[int, Trajectory]]]:
        """See `Buffer`, some at a time."""
        found = self.buffer.trained()
        while chunk := list(islice(found, CHUNK)):
            yield chunk

    async def counts(self) -> tuple[dict[str, int], Told]:
        """See `Buffer`."""
        return self.buffer.counts(), self.told

    async def close(self) -> None:
        """See `Buffer`; who puts from now on waits for ever."""
        self.room = -1
        if isinstance(self._opened, Buffer):
            self._opened.close()


class Board:
    """Says where the setup and the newest weights are: references in lists, in which Ray leaves them references.

    Started again it knows nothing until the trainer tells it again.
    """

    def __init__(self) -> None:
        self._setup: list[Any] = []
        self._version, self._weights = -1, list[Any]()

    def tell(self, setup: list[Any], version: int, weights: list[Any]) -> None:
        """Of these the newest; once or more often."""
        self._setup, self._version, self._weights = setup, version, weights

    def setup(self) -> list[Any]:
        """A reference to a `Setup`, or nothing yet."""
        return self._setup

    def newest(self, known: int) -> tuple[int, list[Any]]:
        """(version, reference to packed weights), or nothing newer."""
        return (self._version, self._weights) if self._version > known else (known, [])
