"""A Ray cluster's watchdog ends what a trainer leaves of the cluster that it started, even if the trainer was killed.

The cluster lies in a temporary directory of its own, and its processes inherit an environment variable that names the
directory. `Watchdog` starts this file as a program of its own, which waits until its owner closes a pipe or is gone,
then ends the processes and removes the directory. The program imports the standard library alone, to be small.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "SHIQRUN_RAY_CLUSTER"
"""The environment variable of a cluster's processes; its value is the cluster's directory."""
LONGEST = 34
"""Bytes of a directory's path in which Ray's sockets still fit: the system allows 107, and Ray adds up to 73."""
LOOK_SECONDS, GRACE_SECONDS, LAST_SECONDS, WAIT_SECONDS = 1.0, 2.0, 10.0, 15.0
"""Seconds between two looks at the owner, until processes are killed, given up, and that a normal end waits."""


class Watchdog:
    """A `Watchdog` ends a Ray cluster's processes and removes its directory when its owner closes it or is gone.

    Attributes:
        directory: an empty directory for the cluster, in `RAY_TMPDIR` or the system's directory for temporary files.
    """

    def __init__(self) -> None:
        base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        base = base if len(os.fsencode(base)) <= LONGEST - len("/shiqrun-12345678") else "/tmp"
        self.directory = Path(tempfile.mkdtemp(prefix="shiqrun-", dir=base))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.directory), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # a signal to the trainer's group or terminal does not reach it
        )

    @contextmanager
    def marks(self) -> Iterator[None]:
        """Mark the processes that are started inside the context as the cluster's."""
        os.environ[MARK] = str(self.directory)
        try:
            yield
        finally:
            del os.environ[MARK]

    def close(self) -> None:
        """End the cluster's processes and remove its directory; return when that is done."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):  # it goes on without its owner
                self._process.wait(WAIT_SECONDS)


def processes_of(directory: str) -> set[int]:
    """Return the processes of a Ray cluster: those that carry its mark, Ray's own that lost it, and their children."""
    mark, found, parents = f"{MARK}={directory}".encode(), set(), dict[int, int]()
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if mark in (place / "environ").read_bytes().split(b"\0") or _is_unmarked(place, directory):
                found.add(int(place.name))
        except OSError:  # it has ended, or is another user's
            continue
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def _is_unmarked(place: Path, directory: str) -> bool:
    """Return whether a process has overwritten its environment with a title of Ray's and has a file of the cluster."""
    if not (place / "cmdline").read_bytes().startswith(b"ray::"):
        return False
    return any(link.readlink().is_relative_to(directory) for link in (place / "fd").iterdir())


def _wait_for_end(owner: int) -> None:
    """Wait until the owner has closed the pipe, or is another process's child no more: it may have left copies open."""
    while os.getppid() == owner and not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        pass


def end_cluster(directory: str) -> None:
    """End the processes of a Ray cluster, first by SIGTERM, then by SIGKILL, and remove its directory."""
    began = time.monotonic()
    while (left := processes_of(directory)) and (spent := time.monotonic() - began) < LAST_SECONDS:
        for process in left:
            try:
                os.kill(process, signal.SIGTERM if spent < GRACE_SECONDS else signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.1)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _wait_for_end(owner=int(sys.argv[2]))  # by then the parent may be another process: the owner may be gone
    end_cluster(sys.argv[1])
