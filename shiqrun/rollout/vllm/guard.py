"""The guard of a server is a program that starts it, and ends it when the trainer closes a pipe or is gone.

`ServerProcess` starts this file; so a server ends with its run, also where the trainer was killed. The program imports
the standard library alone, to be small.
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

LOOK_SECONDS, GRACE_SECONDS = 0.5, 15.0
"""Seconds between two looks at server and owner, and until a server that does not end is killed."""


def main(owner: int, words: list[str]) -> int:
    """Run a server until it ends by itself or its owner is gone; return its exit code.

    Args:
        owner: process id of the trainer.
        words: of the server's command.
    """
    server = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, start_new_session=True
    )  # a group of its own, to be ended
    while server.poll() is None:
        ready, _, _ = select.select([sys.stdin], [], [], LOOK_SECONDS)
        if ready or os.getppid() != owner:
            _end(server)
    _signal(server, signal.SIGKILL)  # what it has left behind
    return server.returncode


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End a server with all processes of its group, first by SIGTERM, then by SIGKILL."""
    _signal(server, signal.SIGTERM)
    end = time.monotonic() + GRACE_SECONDS
    while server.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    _signal(server, signal.SIGKILL)
    server.wait()


def _signal(server: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
