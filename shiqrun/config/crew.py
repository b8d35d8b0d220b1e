"""A `Crew` is the ranks of one run as one of them sees it: who has arrived, where the run is, and who failed first."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from shiqrun.config.places import JOIN_SECONDS, Place, join_seconds
from shiqrun.errors import InputError

POLL_SECONDS = 0.1
UNWIND_SECONDS = 30.0
"""How long a rank may take to end by itself after another one has failed."""
LEAVE_SECONDS = 60.0
"""How long the ranks of a run that has ended may take to end."""
CAUSE_SECONDS = 2.0
"""How long an error may be that of a broken connection before the other rank's own error is known."""
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


class Failure(NamedTuple):
    """A `Failure` says how a rank failed: the exit code of all ranks, and what rank 0 prints."""

    code: int
    text: str


class RankFailed(Exception):
    """`RankFailed` ends a rank after the first failure of any rank, which rank 0 has printed.

    Attributes:
        failure: the first one.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Crew:
    """A `Crew` connects the ranks of a run through a store of keys and values, besides what they compute together.

    Args:
        store: torch's store, which rank 0 or the agent of torchrun serves.
        place: which rank this is.
        say: prints a failure, on rank 0.
        children: the further ranks that this process has started, in their order.

    Attributes:
        code: the exit code that this rank ends with.
        failed: whether it ends because a rank failed.
    """

    code, failed = 0, False

    def __init__(
        self,
        store: Any,
        place: Place,
        say: Callable[[Failure], None],
        children: Sequence["subprocess.Popen[bytes]"] = (),
    ) -> None:
        self.store, self.place, self.say, self.children = store, place, say, list(children)
        self._keys = store.clone()  # torch's own client may wait for long, and serves one thread at a time
        self._over, self._said, self._lock = threading.Event(), False, threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._watcher.start()

    def arrive(self) -> None:
        """Wait until all ranks have arrived.

        Raises:
            InputError: some did not arrive in time; the message names them.
            RankFailed: one has failed meanwhile.
        """
        limit, world = join_seconds(), self.place.world
        self._keys.set(f"here/{self.place.rank}", self.place.host)
        self._keys.add("arrived", 1)
        for late in _polls(limit):
            if self._keys.add("arrived", 0) >= world:
                return
            self._raise_failure()
            if late and self.place.rank == 0:
                raise InputError(self._missing(limit))

    def _missing(self, limit: float) -> str:
        here = [self._keys.check([f"here/{rank}"]) for rank in range(self.place.world)]
        hosts = sorted({self._keys.get(f"here/{rank}").decode() for rank, there in enumerate(here) if there})
        missing = [str(rank) for rank, there in enumerate(here) if not there]
        return (
            f"{len(missing)} of {self.place.world} ranks did not arrive within {limit:g} s: "
            f"{', '.join(missing[:16])}{', ...' * (len(missing) > 16)} (there: those on {', '.join(hosts)}); see the "
            f"output of the other nodes, or raise {JOIN_SECONDS}"
        )

    def tell(self, folder: Path) -> None:
        """Tell the other ranks in which directory the run is."""
        self._keys.set("folder", str(folder))

    def told(self) -> Path | int:
        """Return the directory of the run once rank 0 tells it, or rank 0's exit code where it has ended without a run.

        Raises:
            InputError: this machine does not see the directory.
            RankFailed: a rank has failed before.
        """
        while not self._keys.check(["folder"]):
            self._raise_failure()
            if self._keys.check(["end"]):
                return int(self._keys.get("end"))
            time.sleep(POLL_SECONDS)
        folder = Path(self._keys.get("folder").decode())
        for late in _polls(LEAVE_SECONDS):  # file systems of clusters show new directories late
            if folder.is_dir():
                break
            self._raise_failure()
            if late:
                raise InputError(
                    f"run_dir={folder}: {self.place.host} does not see it; put it where all nodes see the same files"
                )
        return folder

    def fail(self, failure: Failure) -> RankFailed:
        """Tell all ranks how this one failed, and return what ends it: the first failure of any rank.

        A rank that has lost the connection to another one waits a moment for that one's own word. A further rank waits
        until rank 0 has printed it, because torchrun and srun end the others when one process has ended.
        """
        if failure.code == FAILED:
            for late in _polls(CAUSE_SECONDS):
                if self._failure() or late:
                    break
        first = self._failure() or failure
        with suppress(RuntimeError):  # where rank 0 has ended, and the store with it
            first = Failure(*json.loads(self._keys.compare_set("failed", "", json.dumps(first))))
            if self.place.rank == 0:
                self._report(first)
            for late in _polls(CAUSE_SECONDS):
                if late or self._keys.check(["printed"]):
                    break
        self.code, self.failed = first.code, True
        return RankFailed(first)

    def _failure(self) -> Failure | None:
        """Return the first failure of any rank, or None."""
        try:
            if self._keys.check(["failed"]):
                return Failure(*json.loads(self._keys.get("failed")))
        except RuntimeError:
            return Failure(FAILED, "failed: rank 0 has ended")
        for rank, child in enumerate(self.children, 1):
            if child.poll() not in (None, 0, INTERRUPTED):
                return Failure(FAILED, f"failed: rank {rank} ended {_manner(child.returncode)}")
        return None

    def _raise_failure(self) -> None:
        if failure := self._failure():
            raise RankFailed(failure)

    def _report(self, failure: Failure) -> None:
        """Print a failure once, on rank 0."""
        with self._lock:
            if not self._said:
                self._said = True
                self.say(failure)
                self._keys.set("printed", "1")

    def _watch(self) -> None:
        """Watch the other ranks: where one has failed, print that, and end this process if it does not end itself.

        A rank that waits for another one inside a library would hear nothing of it.
        """
        while not self._over.wait(POLL_SECONDS):
            if failure := self._failure():
                if self.place.rank == 0:
                    self._report(failure)
                if not self._over.wait(UNWIND_SECONDS):
                    self._kill_children()
                    os._exit(failure.code)
                return

    def leave(self) -> None:
        """Leave the crew; rank 0 waits for the others, which talk through its store.

        A further rank says that it has left as its last word, because the store ends with rank 0.
        """
        with suppress(RuntimeError):  # the store has ended with rank 0
            if self.place.rank == 0:
                self._keys.set("end", str(self.code))
                self._keys.add("left", 1)
            for late in _polls(CAUSE_SECONDS if self.failed else LEAVE_SECONDS):
                if late or self._may_leave():
                    break
            self._over.set()
            self._watcher.join(LEAVE_SECONDS)
            if self.place.rank:
                self._keys.add("left", 1)
        self._over.set()
        self._kill_children()

    def _may_leave(self) -> bool:
        if self.place.rank:  # SLURM may end all tasks with the first one, before rank 0 has had it run the job again
            return self.code != INTERRUPTED or self._keys.check(["end"])
        gone = all(child.poll() is not None for child in self.children)
        return gone and self._keys.add("left", 0) >= self.place.world

    def _kill_children(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()


def lost_connection(error: BaseException) -> str | None:
    """Return one line about an error of a torch collective whose other side is gone, None for another error."""
    import torch

    lines = str(error).splitlines() or [""]
    gone = isinstance(error, torch.distributed.DistError) or "gloo" in lines[0] or "Connection closed" in lines[0]
    if not isinstance(error, RuntimeError) or not torch.distributed.is_initialized() or not gone:
        return None
    return f"another rank has ended or cannot be reached ({lines[0]}); see its output"


def _polls(seconds: float) -> Iterator[bool]:
    """Yield without end, with pauses; True once so many seconds have passed."""
    end = time.monotonic() + seconds
    while True:
        yield time.monotonic() > end
        time.sleep(POLL_SECONDS)


def _manner(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    return f"by {signal.Signals(-code).name}" + "; the memory may have run out" * (-code == signal.SIGKILL)
