"""How many threads a program may make: the kernel asks its supervisor about each (seccomp's user notification).

No resource limit does it: the one of processes counts all that a user has, and does not hold for root. Where the
kernel cannot ask (before Linux 5.5, or where somebody else listens already), threads are as many as memory allows.
"""

import ctypes
import errno
import fcntl
import os
import select
import struct
from contextlib import suppress

from shiqrun.sandbox import kernel, syscalls

SECCOMP = {"x86_64": 317, "aarch64": 277}
SET_FILTER, NEW_LISTENER = 1, 1 << 3
RECEIVE, SEND = 0xC0502100, 0xC0182101
NOTICE, ANSWER = 80, struct.Struct("=QqiI")
CONTINUE = 1
MOST = 256
"""Threads of a program: memory does not limit small ones before the machine has no process left."""


class Threads:
    """Lets each program of this process make `MOST` threads; this process must not make one itself.

    Attributes:
        listener: descriptor that is readable when `answer` is to be called, -1 where the kernel cannot ask.
    """

    def __init__(self) -> None:
        self._left, self.listener = 0, _listener()
        self._poll = select.poll()
        if self.listener >= 0:
            self._poll.register(self.listener, select.POLLIN)

    def program(self) -> None:
        """Another program begins."""
        self._left = MOST

    def answer(self) -> None:
        """Answers the questions that have come."""
        while self._poll.poll(0):
            notice = bytearray(NOTICE)
            with suppress(OSError):  # who asked has ended
                fcntl.ioctl(self.listener, RECEIVE, notice)
                (identity,) = struct.unpack_from("=Q", notice)
                error, flags = (0, CONTINUE) if self._left > 0 else (-errno.EAGAIN, 0)
                self._left -= 1
                fcntl.ioctl(self.listener, SEND, ANSWER.pack(identity, 0, error, flags))


def _listener() -> int:
    machine = os.uname().machine
    if not kernel.filters():
        return -1
    code = syscalls.asking()
    held = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HP", len(code) // 8, ctypes.addressof(held))
    try:
        kernel.no_new_privileges()
        return kernel.call(SECCOMP[machine], SET_FILTER, NEW_LISTENER, filter_)
    except OSError:
        return -1
