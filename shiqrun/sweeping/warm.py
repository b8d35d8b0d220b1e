"""`Warm` starts a sweep's jobs as forks of one process that has imported PyTorch, which saves seconds of each job.

The process is `python -m shiqrun.sweeping.warm SOCKET`. It reads requests from the socket, a line of JSON each:
`{"start": NUMBER, "words": [...], "console": ...}` forks a job, `{"signal": NUMBER, "number": SIGNAL}` signals it; it
answers `{"ready": true}` once, then `{"ended": NUMBER, "code": CODE}` for each job. A fork of a process with several
threads of Python can hang, so it ends instead where an import has started one; then, and where it dies, jobs are
started as processes of their own. (The threads of OpenBLAS and jemalloc are made for forks.)
"""

import gc
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from shiqrun.util.quick_imports import without_pictures

PRELOADED = (
    "shiqrun.config.launch",
    "shiqrun.commands.train",
    "shiqrun.training.run",
    "shiqrun.models.tiny",
    "shiqrun.models.pretrained",
    "shiqrun.batching.logged_data",
    "shiqrun.evaluation.evaluator",
)
"""Modules that every run imports, with PyTorch, Lightning and transformers behind them."""
POLL_SECONDS = 0.05
LOST = 1
"""Exit code of a job whose end nobody could see, because the process that had forked it was killed."""


class WarmJob:
    """A `WarmJob` is a running fork, with the methods of `subprocess.Popen` that a sweep uses.

    Args:
        starter: that started it.
        number: by which both sides call it.
    """

    def __init__(self, starter: "Warm", number: int) -> None:
        self._starter, self._number = starter, number
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, minus the number of the signal that killed it, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._starter.code_of(self._number)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, which an ended job does not receive."""
        self._starter.tell({"signal": self._number, "number": int(number)})


class Warm:
    """`Warm` is a sweep's side of the process that forks its jobs.

    Args:
        environment: of the process and so of all jobs.
        cwd: working directory of both; None for this process's.
        held: descriptors that jobs inherit.
    """

    def __init__(self, environment: dict[str, str], cwd: str | None, held: Sequence[int]) -> None:
        self.environment = dict(environment)
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "shiqrun.sweeping.warm", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C reaches the sweep alone
            pass_fds=[theirs.fileno(), *held],
        )
        theirs.close()
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._codes: dict[int, int] = {}
        self._count = 0
        self.works = json.loads(self._lines.readline() or "{}").get("ready", False)
        self._socket.setblocking(False)
        self._rest = ""

    def start(self, words: Sequence[str], console: Path) -> WarmJob:
        """Fork a job that runs `shiqrun WORDS...`, its output appended to a file."""
        self._count += 1
        self.tell({"start": self._count, "words": list(words), "console": str(console.absolute())})
        return WarmJob(self, self._count)

    def tell(self, request: dict[str, Any]) -> None:
        """Send a request; a process that has died receives none, which `code_of` notices."""
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            self.works = False

    def code_of(self, number: int) -> int | None:
        """Return the exit code of a job, None while it runs."""
        try:
            while data := self._socket.recv(1 << 16):
                self._rest += data.decode()
            self.works = False
        except BlockingIOError:
            pass
        except OSError:
            self.works = False
        *lines, self._rest = self._rest.split("\n")
        self._codes |= {told["ended"]: told["code"] for told in map(json.loads, lines)}
        return self._codes.get(number, None if self.works else LOST)

    def close(self) -> None:
        """End the process; jobs that still run go on."""
        self._lines.close()
        self._socket.close()
        self._process.wait()


def main(descriptor: int) -> None:
    """Import what runs import, then fork a job for each request until the socket is closed."""
    channel = socket.socket(fileno=descriptor)
    for variable, value in import_module("shiqrun.cli").ENVIRONMENT.items():  # read by PyTorch where it is imported
        os.environ.setdefault(variable, value)
    with without_pictures():
        for name in PRELOADED:
            import_module(name)
    if threading.active_count() > 1:
        return
    gc.collect()
    gc.freeze()  # forks share these objects' memory as long as no collection writes to them
    channel.sendall(b'{"ready": true}\n')
    request = _serve(channel)
    if request is not None:
        channel.close()
        _become_job(request)


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork and signal jobs as asked; return the request in a fork, None once the socket is closed."""
    jobs: dict[int, int] = {}
    rest = b""
    while True:
        for pid in list(jobs):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                told = {"ended": jobs.pop(pid), "code": os.waitstatus_to_exitcode(status)}
                channel.sendall(json.dumps(told).encode() + b"\n")
        if not select.select([channel], [], [], POLL_SECONDS if jobs else None)[0]:
            continue
        data = channel.recv(1 << 16)
        if not data:
            return None
        *lines, rest = (rest + data).split(b"\n")
        for request in map(json.loads, lines):
            if "start" in request:
                if not (pid := os.fork()):
                    return dict(request)
                jobs[pid] = request["start"]
            for pid in [pid for pid, number in jobs.items() if number == request.get("signal")]:
                os.kill(pid, request["number"])


def _become_job(request: dict[str, Any]) -> None:
    """Run the job of a request in this process, a fork, as if it had been started for it alone."""
    os.setpgid(0, 0)
    with Path(request["console"]).open("ab") as console:
        os.dup2(console.fileno(), 1)
        os.dup2(console.fileno(), 2)
    sys.argv = ["shiqrun", *request["words"]]
    sys.exit(import_module("shiqrun.cli").main(request["words"]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
