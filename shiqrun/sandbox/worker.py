"""A worker is the trainer's handle on a zygote: it starts the zygote, sends it programs, and replaces a lost one."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shiqrun.sandbox.backends import Backend
from shiqrun.sandbox.zygote import ANOTHER, LENGTHS, SAME

START_SECONDS, GRACE = 60.0, 10.0
"""Seconds that a zygote may take to start, and to answer after a program's own limit, on a busy machine."""
LARGEST_HEADER = 1 << 20
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""The whole environment of a zygote; the hash seed gives sets the same order in every worker."""


@dataclass(frozen=True)
class Limits:
    """Limits bound the time, memory and output of one program.

    Attributes:
        cpu: seconds of processor time.
        wall: seconds of wall time.
        memory: bytes of address space.
        output: bytes of output, and of the values of its calls.
    """

    cpu: int
    wall: float
    memory: int
    output: int


@dataclass(frozen=True)
class Program:
    """A program is Python code with its standard input, or with calls of a function that it defines.

    Attributes:
        code: Python source.
        given: standard input.
        entry_point: name of the function to call, for a program that reads and prints nothing.
        calls: (arguments, keywords) of each call, encoded by `values`; None runs the code as the main module.
    """

    code: str
    given: bytes = b""
    entry_point: str | None = None
    calls: Sequence[tuple[Any, Any]] | None = None


@dataclass(frozen=True)
class Outcome:
    """An outcome says how one program ended and what it gave.

    Attributes:
        verdict: `ok` where it ended by itself with exit code 0; or `syntax_error`, `runtime_error`, `timeout`,
            `cpu_limit`, `memory_limit`, `output_limit`, `file_limit`, `sandbox_error` (it was never started),
            `sandbox_lost` (its zygote ended with it).
        output: standard output.
        values: JSON of the values of its calls, as the untrusted process reports them.
        errors: the end of its error output.
        cpu: seconds of processor time.
        wall: seconds of wall time.
    """

    verdict: str
    output: bytes = b""
    values: bytes = b""
    errors: str = ""
    cpu: float = 0.0
    wall: float = 0.0


class WorkerLost(Exception):
    """WorkerLost says that a zygote does not start, has ended, or does not answer."""


class SandboxWorker:
    """A worker runs one program after the other in a zygote; a context manager, not for two threads at once.

    Attributes:
        lost: number of zygotes that had to be replaced.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.lost = backend, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._last: str | None = None

    def __enter__(self) -> "SandboxWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: Program, limits: Limits) -> Outcome:
        """Run a program in the sandbox and return its outcome.

        Raises:
            InputError: the backend is not installed.
            WorkerLost: the zygote does not start.
        """
        process = self._process or self._start()
        # Code with calls, such as a judge, always gets a new supervisor.
        same = program.calls is None and program.code == self._last
        self._last = program.code if program.calls is None else None
        header = {**asdict(limits), "code": program.code, "entry_point": program.entry_point, "calls": program.calls}
        try:
            self._send(process, SAME if same else ANOTHER, header, program.given, time.monotonic() + START_SECONDS)
            return _outcome_from_answer(
                *self._receive(process, time.monotonic() + limits.wall + GRACE, 2 * limits.output)
            )
        except (WorkerLost, OSError, ValueError, KeyError, TypeError) as error:
            self.close()
            self.lost += 1
            return Outcome("sandbox_lost", errors=str(error))

    def _start(self) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        self._process = process = subprocess.Popen(
            self.backend.command(),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=ENVIRONMENT,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        try:
            hello, _ = self._receive(process, time.monotonic() + START_SECONDS, 0)
        except (WorkerLost, OSError, ValueError) as error:
            raise WorkerLost(f"{self._last_words(process) or error}") from None
        if "error" in hello:
            self.close()
            raise WorkerLost(hello["error"])
        return process

    def _last_words(self, process: "subprocess.Popen[bytes]") -> str:
        """End a zygote that did not start; return what it wrote to its error output."""
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        words = process.stderr.read().decode("utf-8", "replace").strip()
        self.close()
        return words

    def _send(
        self, process: "subprocess.Popen[bytes]", which: bytes, header: Mapping[str, Any], body: bytes, end: float
    ) -> None:
        assert process.stdin is not None
        text = json.dumps(header).encode()
        target = process.stdin.fileno()
        for part in (which + LENGTHS.pack(len(text), len(body)) + text, body):
            left = memoryview(part)
            while left:
                _wait_for(target, select.POLLOUT, end, "read")
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(target, left) :]

    def _receive(self, process: "subprocess.Popen[bytes]", end: float, largest: int) -> tuple[dict[str, Any], bytes]:
        assert process.stdout is not None
        source = process.stdout.fileno()
        sizes = LENGTHS.unpack(_read_exactly(source, LENGTHS.size, end))
        if sizes[0] > LARGEST_HEADER or sizes[1] > largest:
            raise WorkerLost(f"the worker announces {sizes} bytes")
        header = json.loads(_read_exactly(source, sizes[0], end))
        return dict(header), _read_exactly(source, sizes[1], end)

    def close(self) -> None:
        """End the zygote and what runs in it; the next program starts another."""
        process, self._process, self._last = self._process, None, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        process.wait()


def _wait_for(number: int, event: int, end: float, what: str) -> None:
    poll = select.poll()  # unlike select, poll takes descriptors of any number
    poll.register(number, event)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise WorkerLost(f"the worker does not {what}")


def _read_exactly(source: int, length: int, end: float) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        _wait_for(source, select.POLLIN, end, "answer")
        piece = os.read(source, min(length - len(parts), 1 << 20))
        if not piece:
            raise WorkerLost("the worker has ended")
        parts += piece
    return bytes(parts)


def _outcome_from_answer(header: Mapping[str, Any], body: bytes) -> Outcome:
    cut = len(body) - int(header["values"])
    numbers = (float(header["cpu"]), float(header["wall"]))
    return Outcome(str(header["verdict"]), body[:cut], body[cut:], str(header["errors"]), *numbers)
