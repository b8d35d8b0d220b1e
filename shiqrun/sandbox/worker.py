"""A zygote as the trainer sees it: started when it is needed, asked to run a program, replaced when it is lost."""

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
"""Wall time that a zygote may take to start, and to answer beyond a program's own limit: the machine may be busy."""
LARGEST_HEADER = 1 << 20
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""Nothing of ours; sets are in the same order in every worker."""


@dataclass(frozen=True)
class Limits:
    """Of one program.

    Attributes:
        cpu: seconds of processor time.
        wall: seconds.
        memory: bytes of address space.
        output: bytes of output, and of values.
    """

    cpu: int
    wall: float
    memory: int
    output: int


@dataclass(frozen=True)
class Program:
    """What to run.

    Attributes:
        code: Python.
        given: what it reads.
        entry_point: a function to call, for a program that reads and prints nothing.
        calls: (arguments, keywords) of each call, as forms of `values`; None runs it as the main module.
    """

    code: str
    given: bytes = b""
    entry_point: str | None = None
    calls: Sequence[tuple[Any, Any]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        verdict: `ok`, it ended by itself with exit code 0; or `syntax_error`, `runtime_error`, `timeout`, `cpu_limit`,
            `memory_limit`, `output_limit`, `file_limit`, `sandbox_error` (it was never started), `sandbox_lost` (it
            took its worker along).
        output: what it printed.
        values: JSON of what its calls gave, as it says.
        errors: the end of what it wrote to its errors.
        cpu: seconds of processor time.
        wall: seconds.
    """

    verdict: str
    output: bytes = b""
    values: bytes = b""
    errors: str = ""
    cpu: float = 0.0
    wall: float = 0.0


class Lost(Exception):
    """The zygote does not start, or has ended, or does not answer."""


class Worker:
    """Runs one program after the other; a context manager. Not for two threads at once.

    Attributes:
        lost: zygotes that had to be replaced.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.lost = backend, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._last: str | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: Program, limits: Limits) -> Outcome:
        """What became of a program.

        Raises:
            InputError: the backend is not installed.
            Lost: its zygote does not start.
        """
        process = self._process or self._start()
        same = program.calls is None and program.code == self._last  # what judges is called, and always another
        self._last = program.code if program.calls is None else None
        header = {**asdict(limits), "code": program.code, "entry_point": program.entry_point, "calls": program.calls}
        try:
            self._send(process, SAME if same else ANOTHER, header, program.given, time.monotonic() + START_SECONDS)
            return _outcome(*self._receive(process, time.monotonic() + limits.wall + GRACE, 2 * limits.output))
        except (Lost, OSError, ValueError, KeyError, TypeError) as error:
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
        except (Lost, OSError, ValueError) as error:
            raise Lost(f"{self._last_words(process) or error}") from None
        if "error" in hello:
            self.close()
            raise Lost(hello["error"])
        return process

    def _last_words(self, process: "subprocess.Popen[bytes]") -> str:
        """What a zygote that did not start has written to its errors."""
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
                _expect(target, select.POLLOUT, end, "read")
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(target, left) :]

    def _receive(self, process: "subprocess.Popen[bytes]", end: float, largest: int) -> tuple[dict[str, Any], bytes]:
        assert process.stdout is not None
        source = process.stdout.fileno()
        sizes = LENGTHS.unpack(_exactly(source, LENGTHS.size, end))
        if sizes[0] > LARGEST_HEADER or sizes[1] > largest:
            raise Lost(f"the worker announces {sizes} bytes")
        header = json.loads(_exactly(source, sizes[0], end))
        return dict(header), _exactly(source, sizes[1], end)

    def close(self) -> None:
        """Ends the zygote and what runs in it; the next program starts another."""
        process, self._process, self._last = self._process, None, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        process.wait()


def _expect(number: int, event: int, end: float, what: str) -> None:
    poll = select.poll()  # which takes descriptors of any number
    poll.register(number, event)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise Lost(f"the worker does not {what}")


def _exactly(source: int, length: int, end: float) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        _expect(source, select.POLLIN, end, "answer")
        piece = os.read(source, min(length - len(parts), 1 << 20))
        if not piece:
            raise Lost("the worker has ended")
        parts += piece
    return bytes(parts)


def _outcome(header: Mapping[str, Any], body: bytes) -> Outcome:
    cut = len(body) - int(header["values"])
    numbers = (float(header["cpu"]), float(header["wall"]))
    return Outcome(str(header["verdict"]), body[:cut], body[cut:], str(header["errors"]), *numbers)
