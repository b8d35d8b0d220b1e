"""A run directory has one writer: `lock_run` keeps other processes out of it until the run ends or its process dies."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shiqrun.config.run_directory import CONFIG, LOCK
from shiqrun.errors import InputError
from shiqrun.util.atomic import remove_partials
from shiqrun.util.lock import Lock, LockHeld
from shiqrun.util.quoting import quote_for_shell

log = logging.getLogger("shiqrun")
WRITTEN = ("*.json", "*.jsonl", "*.csv", "*.yaml")
"""Files that only the run writes into its directory: a report writes its page there without the lock."""
_held: dict[Path, Lock] = {}


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a run directory inside the block; do nothing where this one does already.

    The lock ends with the process, and processes that it forks do not hold it. The lock file goes at the end; what a
    killed writer of the run left goes at the start.

    Raises:
        InputError: another process, named in the message, writes into the directory.
    """
    folder = folder.absolute()
    lock = None if folder in _held else _acquire(folder)
    if lock is None:
        yield
        return
    _held[folder] = lock
    try:
        for kind in WRITTEN:
            remove_partials(folder, kind)
            remove_partials(folder / CONFIG.parent, kind)
        yield
    finally:
        lock.path.unlink(missing_ok=True)  # while it is held, so that nobody removes the file of another holder
        _held.pop(folder).release()


def _acquire(folder: Path) -> Lock | None:
    """Return a lock on the directory, or None where its file system has no locks or nothing can be written.

    Raises:
        InputError: another process holds it.
    """
    while True:
        lock = Lock(folder / LOCK)
        try:
            lock.acquire()
        except LockHeld as held:
            who = str(held).partition(" holds ")[0]
            raise InputError(
                f"run_dir={folder}: {who} is writing into it; wait for it to end or stop it, then go on by "
                f"resume={quote_for_shell(folder)}, or give another run_dir"
            ) from None
        except OSError as error:
            if os.access(folder, os.W_OK):  # else the run ends at its first file, with a message of its own
                log.warning("%s: no lock (%s): take care that no other process writes there", folder, error.strerror)
            return None
        if _is_current(lock):
            return lock
        lock.release()  # the former holder removed the file after we opened it
        time.sleep(0.01)


def _is_current(lock: Lock) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), lock.path.stat())
    except FileNotFoundError:
        return False


def _forget_in_child() -> None:
    """Close the locks in a forked process, which would hold them after the death of the one that took them."""
    for lock in _held.values():
        lock.release()
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
