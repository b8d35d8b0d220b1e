"""A seccomp-bpf filter allows the system calls that a program may make; the kernel refuses all others.

Allowed are calls to compute, read and print. Not allowed is what reaches beyond the process: sockets, processes,
signals to others, changes of files and their attributes, other kernel interfaces. Landlock decides which files may be
read.
"""

import platform
import struct
from typing import Final

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN: Final = {"x86_64": 0, "aarch64": 1}

ALLOWED: Final[dict[str, tuple[int, int | None]]] = {
    # frequent calls first, because the kernel goes through the filter from the top
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "openat": (257, 56),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "lseek": (8, 62),
    "getdents64": (217, 61),
    "clock_gettime": (228, 113),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    # files
    "open": (2, None),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents": (78, None),
    "getcwd": (79, 17),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "fsync": (74, 82),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    # threads and the process itself
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "arch_prctl": (158, None),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),  # only down: no capability is left
    # time, signals to oneself by timers, the machine
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "alarm": (37, None),
    "pause": (34, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "sigaltstack": (131, 132),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "getrandom": (318, 278),
    "uname": (63, 160),
    "sysinfo": (99, 179),
}
"""Name: (number on x86_64, on aarch64); None where the architecture has no such call."""

WITH_ARGUMENT: Final[dict[str, tuple[tuple[int, int], int, tuple[int, ...]]]] = {
    "ioctl": ((16, 29), 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),  # size, unread, blocking, close on exec
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # copies and flags of descriptors, no signals to others
    "prctl": ((157, 167), 0, (15, 16, 0x53564D41)),  # names of threads and of memory
    "prlimit64": ((302, 261), 0, (0,)),  # its own limits
}
"""Name: (numbers, which argument, the values of it that are allowed)."""

CLONE = (56, 220)
CLONE_THREAD = 0x10000
YOUNG = 424
"""Calls from this number on are new: libraries fall back to older ones where the kernel answers that there is none."""

LOAD, EQUAL, AT_LEAST, HAS_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ASK, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x7FC00000, 0x80000000, 0x00050000
NOT_PERMITTED, NO_SUCH_CALL = ERRNO | 1, ERRNO | 38
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in seccomp_data; arguments are 8 bytes, the lower half first
X32 = 0x40000000


def is_known_machine() -> bool:
    """Return whether the numbers of this machine's system calls are known."""
    return platform.machine() in COLUMN


def program_filter() -> bytes:
    """Return the seccomp filter for programs on this machine, an array of sock_filter.

    Raises:
        KeyError: the architecture is not known.
    """
    machine = platform.machine()
    column = COLUMN[machine]
    steps: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, KILL_PROCESS),
    ]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for numbers, argument, values in WITH_ARGUMENT.values():
        hits = [(EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
        rule = [(LOAD, 0, 0, ARGUMENTS + 8 * argument), *hits, (RETURN, 0, 0, NOT_PERMITTED), (RETURN, 0, 0, ALLOW)]
        steps += [(EQUAL, 0, len(rule), numbers[column]), *rule]
    steps += [
        (EQUAL, 0, 4, CLONE[column]),
        (LOAD, 0, 0, ARGUMENTS),
        (HAS_BITS, 0, 1, CLONE_THREAD),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, NOT_PERMITTED),
        (AT_LEAST, 0, 1, YOUNG),  # such as clone3, whose flags no filter can read
        (RETURN, 0, 0, NO_SUCH_CALL),
        (RETURN, 0, 0, NOT_PERMITTED),
    ]
    return pack_filter(steps)


def thread_filter() -> bytes:
    """Return the seccomp filter that notifies the supervisor of every new thread and allows all else.

    Raises:
        KeyError: the architecture is not known.
    """
    machine = platform.machine()
    return pack_filter(
        [
            (LOAD, 0, 0, ARCHITECTURE),
            (EQUAL, 0, 5, AUDIT_ARCH[machine]),
            (LOAD, 0, 0, NUMBER),
            (EQUAL, 0, 3, CLONE[COLUMN[machine]]),
            (LOAD, 0, 0, ARGUMENTS),
            (HAS_BITS, 0, 1, CLONE_THREAD),
            (RETURN, 0, 0, ASK),
            (RETURN, 0, 0, ALLOW),
        ]
    )


def pack_filter(steps: list[tuple[int, int, int, int]]) -> bytes:
    """Return filter steps, each (code, jump if true, jump if false, operand), as an array of sock_filter."""
    return b"".join(struct.pack("HBBI", *step) for step in steps)
