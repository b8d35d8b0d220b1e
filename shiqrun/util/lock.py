"""A `Lock` is an exclusive file lock that ends with the process holding it, and names that process to others.

The lock is the kernel's (`flock`), so a killed holder leaves none. The lock file itself stays where it is, and names
its last holder: `{"pid": 4711, "host": "node3", "since": "2026-01-31 12:00:00"}`.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from shiqrun.errors import InputError
from shiqrun.util import ranks

log = logging.getLogger("shiqrun")
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 2.0
"""How long `wait_for_lock` waits before it says so."""


class LockHeld(Exception):
    """Another process, named in the message, holds the lock."""


class Lock:
    """A `Lock` on a file excludes other processes and threads; as a context manager it acquires at once or fails.

    Child processes that inherit the file's descriptor hold the lock, too, until the last of them ends.

    Args:
        path: of the lock file, which is created where it is missing; its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, timeout: float | None = 0.0) -> None:
        """Acquire the lock, or raise `LockHeld` after `timeout` seconds.

        Args:
            timeout: seconds to wait for it; None waits until it is free.

        Raises:
            LockHeld: another holder has kept it for so long.
            OSError: the file cannot be opened, or its file system has no locks.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(descriptor, timeout)
            with suppress(OSError):  # on a full disk the lock holds all the same, and only its holder has no name
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _lock(self, descriptor: int, timeout: float | None) -> None:
        if timeout is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return
        end = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise LockHeld(f"{holder(self.path)} holds {self.path}") from None
            time.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Release the lock; do nothing if this object does not hold it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def fileno(self) -> int:
        """Return the file descriptor that a child process must inherit to hold the lock with this process."""
        assert self._descriptor is not None, "the lock is not held"
        return self._descriptor

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


@contextmanager
def wait_for_lock(path: Path, reason: str) -> Iterator[None]:
    """Hold a file lock inside the block; log `reason` and the present holder where it is not free in two seconds.

    Raises:
        OSError: the lock file cannot be opened, or its file system has no locks.
    """
    lock = Lock(path)
    try:
        lock.acquire(PATIENCE_SECONDS)
    except LockHeld as held:
        log.info("%s (%s)", reason, held)
        lock.acquire(None)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def lock_for_all_ranks(path: Path, reason: str) -> Iterator[None]:
    """Hold a file lock inside the block, for all ranks of a run: rank 0 has it, and they enter and leave together.

    Rank 0 logs `reason` and the present holder where the lock is not free in two seconds. It asks again and again, so
    that no exchange between the ranks takes long.

    Raises:
        InputError: a rank does not see the lock file of rank 0.
        OSError: the lock file cannot be opened, or its file system has no locks.
    """
    lock, said = Lock(path), False
    if ranks.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        while not ranks.broadcast_object(ranks.rank() == 0 and _is_acquired(lock, None if said else reason)):
            said = True
        if not path.exists():
            raise InputError(
                f"{path.parent}: rank {ranks.rank()} does not see the file {path.name} that rank 0 wrote there; give a "
                "directory that all machines of the run share"
            )
        yield
        ranks.barrier()
    finally:
        lock.release()


def _is_acquired(lock: Lock, reason: str | None) -> bool:
    """Try for some seconds to acquire a lock; log the reason of the wait, if there is one, where it is not free."""
    try:
        lock.acquire(PATIENCE_SECONDS)
    except LockHeld as held:
        if reason:
            log.info("%s (%s)", reason, held)
        return False
    return True


def holder(path: Path) -> str:
    """Return the last holder of a lock file in words: `process 4711 on node3 since 2026-01-31 12:00:00`."""
    try:
        found = json.loads(path.read_bytes())
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # one that is about to write its name, or another program
        return "another process"


def _this_process() -> dict[str, int | str]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
