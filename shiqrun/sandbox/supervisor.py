"""The process beside a program: forks it, feeds it, and keeps the limits that the kernel does not keep.

It sees the requests of one program, and the program, being a fork of it, no more either.
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
"""Descriptors from here on are the zygote's; those below belong to programs."""
PIECE = 1 << 16
TAIL = 2000
"""Bytes of what a program writes to its errors that are kept."""
PAUSE = 0.0005


class Supervisor:
    """One program: a fork, its pipes, its end."""

    def __init__(
        self,
        request: dict[str, Any],
        given: bytes,
        confinement: kernel.Confinement,
        trainer: int,
        threads: Threads,
    ) -> None:
        self.request, self.confinement, self.trainer = request, confinement, trainer
        self.given = memoryview(given)
        self.began = time.monotonic()
        self.deadline = self.began + request["wall"]
        self.stopped: str | None = None
        self.threads = threads
        threads.program()

    def answer(self) -> tuple[dict[str, Any], bytes, bytes]:
        """What is known of it, its output and the values it gave."""
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
                _child(self.request, self.sink, [writing for _, writing in pipes], self.confinement)
        os.close(self.sink)
        for _, writing in pipes:
            os.close(writing)
        output, errors, values, ready = self.texts.values()
        if self.pid:
            self._watch([reading for reading, _ in pipes][:2])
            status, used = self._end()
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

    def _watch(self, told: list[int]) -> None:
        """Feeds the program and reads what it writes until it closes everything, or has to be stopped."""
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
                    self.stopped = "sandbox_lost"  # who asked has ended
                elif number == self.threads.listener:
                    self.threads.answer()
                elif number == self.input:
                    self._feed(poll)
                elif not self._take(number, keep_tail=number == told[1]):
                    poll.unregister(number)
                    open_.discard(number)

    def _feed(self, poll: select.poll) -> None:
        try:
            self.given = self.given[os.write(self.input, self.given[:PIECE]) :]
        except BlockingIOError:
            return
        except OSError:  # it does not read on
            self.given = memoryview(b"")
        if not self.given:
            poll.unregister(self.input)
            os.close(self.input)
            self.input = -1

    def _take(self, number: int, *, keep_tail: bool) -> bool:
        piece, text = os.read(number, PIECE), self.texts[number]
        text += piece
        if keep_tail:
            del text[: -2 * TAIL]
        elif len(text) > self.request["output"]:
            del text[self.request["output"] :]
            self.stopped = "output_limit"
        return bool(piece)

    def _end(self) -> tuple[int, float]:
        """Wait status and processor time, seconds, once it is gone."""
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
            os.killpg(self.pid, signal.SIGKILL)  # where only limits confine, it may have left others behind
        if pid == 0:
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)  # it may not have a group of its own yet
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


def _child(request: dict[str, Any], sink: int, pipes: list[int], how: kernel.Confinement) -> NoReturn:
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
