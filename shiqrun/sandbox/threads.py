"""The supervisor limits a program's threads: the kernel asks it about each new one (seccomp's user notification).

No resource limit can do this: RLIMIT_NPROC counts all processes of a user and does not hold for root. Where the kernel
cannot ask (before Linux 5.5, or where another process listens already), only memory limits threads.
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
"""The largest number of threads of a program; memory limits small ones only after the machine has no process left."""


class Threads:
    """A `Threads` object allows each program that this process forks `MOST` threads; this process must make none.

    Attributes:
        listener: descriptor that is readable when `answer` must be called, -1 where the kernel cannot ask.
    """

    def __init__(self) -> None:
        self._left, self.listener = 0, _install_listener()
        self._poll = select.poll()
        if self.listener >= 0:
            self._poll.register(self.listener, select.POLLIN)

    def begin_program(self) -> None:
        """Start to count the threads of another program."""
        self._left = MOST

    def answer(self) -> None:
        """Answer the kernel's waiting questions whether a program may start a thread."""
        while self._poll.poll(0):
            notice = bytearray(NOTICE)
            with suppress(OSError):  # the thread that asked has ended
                fcntl.ioctl(self.listener, RECEIVE, notice)
                (identity,) = struct.unpack_from("=Q", notice)
                error, flags = (0, CONTINUE) if self._left > 0 else (-errno.EAGAIN, 0)
                self._left -= 1
                fcntl.ioctl(self.listener, SEND, ANSWER.pack(identity, 0, error, flags))


def _install_listener() -> int:
    machine = os.uname().machine
    if not kernel.has_seccomp():
        return -1
    code = syscalls.thread_filter()
    held = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HP", len(code) // 8, ctypes.addressof(held))
    try:
        kernel.no_new_privileges()
        return kernel.system_call(SECCOMP[machine], SET_FILTER, NEW_LISTENER, filter_)
    except OSError:
        return -1
