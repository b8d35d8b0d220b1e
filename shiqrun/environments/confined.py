"""A confined process is a child with limits on memory, files and processor time that answers one request at a time.

An environment that runs code which may not end, or may take all memory, runs it in such a process. The parent holds a
`ConfinedProcess` and sends requests; the child calls `serve` with a function that answers them. The kernel ends a child
that takes too long or too much; the next request of the parent starts another, and `ended` tells that state was lost.
Nothing here imports torch.
"""

import contextlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from shiqrun.errors import InputError

MEMORY = 1 << 30
"""Most address space of a child, bytes."""
OPEN_FILES = 64
WALL_SECONDS = 120.0
"""Seconds in which a child must start, and by default answer a request; the parent ends one that does not."""
OUT_OF_MEMORY = 77
"""The exit code of a child that a request has run out of memory."""


class LimitReached(Exception):
    """LimitReached says that a limit ended the child during a request."""


class ProcessKilled(Exception):
    """ProcessKilled says that something other than a limit ended the child during a request."""


class ConfinedProcess:
    """A `ConfinedProcess` is the parent's handle on a confined child; as a context manager it ends the child.

    Args:
        module: what the child runs, `python -m module SECONDS`; it calls `serve`.
        name: what the child does, for error messages: "the process that ...".
        cpu_seconds: most processor time of a request; unlike wall time, it does not depend on how busy the machine is.
        wall_seconds: time after which a child that does not answer is ended, for a request that waits or sleeps.

    Attributes:
        ended: number of children that have ended; the state in them is lost.
    """

    def __init__(self, module: str, name: str, cpu_seconds: float, wall_seconds: float = WALL_SECONDS) -> None:
        self.module, self.name, self.cpu_seconds, self.wall_seconds = module, name, cpu_seconds, wall_seconds
        self.ended = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "ConfinedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, what: dict[str, Any]) -> dict[str, Any]:
        """Send a request to the confined child and return its answer; both are JSON objects.

        Args:
            what: the request; its `times`, 1 by default, multiplies the time that it may take.

        Raises:
            LimitReached: a limit ended the child.
            ProcessKilled: something else ended it.
            InputError: the child does not start.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._reason_of_end(process) from None
        return self._answer(process, self.wall_seconds * what.get("times", 1))

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", self.module, str(self.cpu_seconds)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # a Ctrl-C is meant for the parent, which may still want the answer
        )
        try:
            self._answer(self._process, WALL_SECONDS)
        except (LimitReached, ProcessKilled):
            raise InputError(f"{self.name} does not start; try: {' '.join(command)}") from None
        return self._process

    def _answer(self, process: "subprocess.Popen[str]", seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            if not ready.select(seconds):
                self.close()
                raise LimitReached
            line = process.stdout.readline()
        if not line:
            raise self._reason_of_end(process)
        return dict(json.loads(line))

    def _reason_of_end(self, process: "subprocess.Popen[str]") -> LimitReached | ProcessKilled:
        """Return the error that says why a child has ended by itself."""
        code = process.wait()
        self.close()
        if code in (-signal.SIGPROF, OUT_OF_MEMORY):
            return LimitReached()
        return ProcessKilled(f"{self.name} ended with exit code {code}")

    def close(self) -> None:
        """End the confined child and what it started; the next request starts another."""
        if self._process is not None:
            if self._process.poll() is None:  # so that its number, which is that of its group, is still its own
                os.killpg(self._process.pid, signal.SIGKILL)
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()
            self._process.wait()
            self._process = None
            self.ended += 1


def serve(
    answer: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    load: Callable[[], None] = lambda: None,
    memory: int = MEMORY,
) -> None:
    """Run the confined child: limit this process, then answer the requests of standard input until it ends.

    Memory, files and core dumps are limited for the whole process, processor time (the first word of the command line,
    seconds) for each request. Each answer also gets `seconds`, the processor time that it took.

    Args:
        answer: returns the answer to a request.
        load: imports or starts what requests need, before the first of them is timed.
        memory: most address space of this process, and of each one that it starts, bytes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the parent, which may still want an answer
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that prints of the code that runs here do not mix with answers
    seconds = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    load()
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds * request.get("times", 1))
        began = time.process_time()
        try:
            found = answer(request)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        found["seconds"] = time.process_time() - began
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(found) + "\n")
        answers.flush()
