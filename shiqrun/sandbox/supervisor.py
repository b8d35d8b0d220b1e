"""The supervisor forks a program, writes its input, and enforces the limits of wall time and output.

It handles the requests of one program only, so that the program, a fork of it, can find those of no other.
"""

import os
import select
import signal
import time
from contextlib import suppress
from typing import Any, NoReturn

from shiqrun.sandbox import kernel, program
from shiqrun.sandbox.threads import Threads

OWN = 10
"""Descriptors from this number on belong to the zygote, those below to programs."""
PIECE = 1 << 16
TAIL = 2000
"""Bytes at the end of a program's error output that are kept."""
PAUSE = 0.0005


class Supervisor:
    """A supervisor runs one program: it forks it, feeds its pipes, enforces its limits and ends it.

    Args:
        request: code, calls and limits, as `worker.SandboxWorker` sends them.
        input_: the program's standard input.
        confinement: applied by the fork to itself.
        trainer: descriptor of requests, readable at its end when the trainer has gone.
        threads: limits the program's threads.
    """

    def __init__(
        self,
        request: dict[str, Any],
        input_: bytes,
        confinement: kernel.Confinement,
        trainer: int,
        threads: Threads,
    ) -> None:
        self.request, self.confinement, self.trainer = request, confinement, trainer
        self.unsent = memoryview(input_)
        self.began = time.monotonic()
        self.deadline = self.began + request["wall"]
        self.stopped: str | None = None
        self.threads = threads
        threads.begin_program()

    def run(self) -> tuple[dict[str, Any], bytes, bytes]:
        """Run the program; return its verdict with error output and times, its output, and the values of its calls."""
        self.input, self.sink = (ends := os.pipe())[1], ends[0]
        pipes = [os.pipe() for _ in range(4)]  # output, errors, values, ready
        self.texts = {reading: bytearray() for reading, _ in pipes}
        try:
            self.pid = os.fork()
        except OSError as error:
            self.pid = 0
            found = {"verdict": "sandbox_error", "errors": f"fork: {error}", "cpu": 0.0, "wall": 0.0}
        else:
            if self.pid == 0:
                _become_program(self.request, self.sink, [writing for _, writing in pipes], self.confinement)
        os.close(self.sink)
        for _, writing in pipes:
            os.close(writing)
        output, errors, values, ready = self.texts.values()
        if self.pid:
            self._watch([reading for reading, _ in pipes][:2])
            status, used = self._wait_for_end()
            found = {
                "verdict": self.stopped or self._verdict(status, bool(ready), used),
                "errors": bytes(errors[-TAIL:]).decode("utf-8", "replace"),
                "cpu": used,
                "wall": time.monotonic() - self.began,
            }
        for number in [self.input, *self.texts]:
            if number >= 0:
                os.close(number)
        return found, bytes(output), bytes(values)

    def _watch(self, output_pipes: list[int]) -> None:
        """Write the program's input and read its output until it closes its pipes or a limit stops it."""
        poll = select.poll()
        for number in self.texts:
            poll.register(number, select.POLLIN)
        poll.register(self.trainer, select.POLLIN)
        if self.threads.listener >= 0:
            poll.register(self.threads.listener, select.POLLIN)
        os.set_blocking(self.input, False)
        poll.register(self.input, select.POLLOUT)
        open_ = set(self.texts)
        while open_ and self.stopped is None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                self.stopped = "timeout"
            for number, _ in poll.poll(max(left, 0) * 1000):
                if number == self.trainer:
                    self.stopped = "sandbox_lost"  # the trainer has ended
                elif number == self.threads.listener:
                    self.threads.answer()
                elif number == self.input:
                    self._write_input(poll)
                elif not self._read_output(number, keep_tail=number == output_pipes[1]):
                    poll.unregister(number)
                    open_.discard(number)

    def _write_input(self, poll: select.poll) -> None:
        try:
            self.unsent = self.unsent[os.write(self.input, self.unsent[:PIECE]) :]
        except BlockingIOError:
            return
        except OSError:  # the program reads no more
            self.unsent = memoryview(b"")
        if not self.unsent:
            poll.unregister(self.input)
            os.close(self.input)
            self.input = -1

    def _read_output(self, number: int, *, keep_tail: bool) -> bool:
        piece, text = os.read(number, PIECE), self.texts[number]
        text += piece
        if keep_tail:
            del text[: -2 * TAIL]
        elif len(text) > self.request["output"]:
            del text[self.request["output"] :]
            self.stopped = "output_limit"
        return bool(piece)

    def _wait_for_end(self) -> tuple[int, float]:
        """Wait until the program has ended, or end it; return its wait status and processor time in seconds."""
        pid = 0
        while self.stopped is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > self.deadline:
                self.stopped = "timeout"
            self.threads.answer()
            time.sleep(PAUSE)
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)  # under rlimits it may have left other processes behind
        if pid == 0:
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)  # it may have no process group of its own yet
            _, status, usage = os.wait4(self.pid, 0)
        return status, usage.ru_utime + usage.ru_stime

    def _verdict(self, status: int, ready: bool, used: float) -> str:
        if not ready:
            return "sandbox_error"
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number == signal.SIGXCPU or (number == signal.SIGKILL and used >= self.request["cpu"]):
            return "cpu_limit"
        if number == signal.SIGXFSZ:
            return "file_limit"
        words = {0: "ok", program.NO_PROGRAM: "syntax_error", program.OUT_OF_MEMORY: "memory_limit"}
        return "runtime_error" if number else words.get(os.WEXITSTATUS(status), "runtime_error")


def _become_program(request: dict[str, Any], sink: int, pipes: list[int], how: kernel.Confinement) -> NoReturn:
    try:
        os.setsid()
        kernel.die_with_parent(signal.SIGKILL)
        for target, number in enumerate([sink, *pipes]):
            os.dup2(number, target)
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if how.ruleset is not None:
            os.dup2(how.ruleset, OWN)
            how = kernel.Confinement(OWN, how.filter)
        os.closerange(OWN + (how.ruleset is not None), 256)
        kernel.confine(how, cpu=request["cpu"], memory=request["memory"])
        os.write(len(pipes), b"1")
        os.closerange(len(pipes), 256)
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(program.FAILED)
    program.run(request)
