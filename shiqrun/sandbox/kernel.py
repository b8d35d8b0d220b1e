"""These functions confine a Linux process for the sandbox: by rlimits, capabilities, Landlock and seccomp.

They need neither privileges nor helper programs.
"""

import ctypes
import os
import resource
import stat
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from shiqrun.sandbox import syscalls

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_GET_SECCOMP, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 21, 22, 38
SECCOMP_MODE_FILTER = 2
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION = 0x20080522
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
ABI_QUESTION = 1
RULE_PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIRECTORY = 1, 2, 4, 8
FIRST_RIGHTS, REFER, TRUNCATE, IOCTL = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
TCP, BEYOND = 3, 3  # Landlock's rights to bind and connect; to abstract sockets and signals outside the domain
NEEDED = "Linux 5.13 or later with landlock in its list of security modules (lsm=)"

FILES = 32  # descriptors
STACK = 64 << 20  # bytes


@dataclass(frozen=True)
class Confinement:
    """A confinement holds what confines a program; the zygote makes it once, and every fork applies it to itself.

    Attributes:
        ruleset: descriptor of a Landlock ruleset, None for none.
        filter: seccomp filter (an array of sock_filter), None for none.
    """

    ruleset: int | None
    filter: bytes | None


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ABI_QUESTION)))


def has_seccomp() -> bool:
    """Return whether the kernel takes seccomp filters and the system calls of this machine are known."""
    return sys.platform == "linux" and syscalls.is_known_machine() and _libc().prctl(PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def make_ruleset(readable: Sequence[str], devices: Sequence[str]) -> int:
    """Return the descriptor of a Landlock ruleset: it allows to read below `readable` and to use `devices`.

    Raises:
        OSError: the kernel refuses it.
    """
    abi = landlock_version()
    files = FIRST_RIGHTS | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL if abi >= 5 else 0)
    handled = [files, *([TCP] if abi >= 4 else []), *([BEYOND] if abi >= 6 else [])]
    attributes = struct.pack(f"{len(handled)}Q", *handled)
    rules = system_call(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, rights in ((readable, READ_FILE | READ_DIRECTORY), (devices, READ_FILE | WRITE_FILE)):
        for path in filter(os.path.exists, paths):
            _add_rule(rules, path, rights)
    return rules


def _add_rule(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= ~READ_DIRECTORY
        system_call(LANDLOCK_ADD, rules, RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def confine(how: Confinement, *, cpu: int, memory: int) -> None:
    """Confine this process for good: resource limits, no capabilities, Landlock and seccomp.

    Args:
        how: the Landlock ruleset and the seccomp filter.
        cpu: seconds of processor time.
        memory: bytes of address space.

    Raises:
        OSError, ValueError: the kernel refuses a part of it.
    """
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (FILES, FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_STACK: (STACK, STACK),
    }
    for what, (soft, hard) in limits.items():
        most = resource.getrlimit(what)[1]
        hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(what, (min(soft, hard), hard))
    if sys.platform != "linux":
        return
    _prctl(PR_SET_DUMPABLE, 0)
    no_new_privileges()
    if how.ruleset is not None:
        system_call(LANDLOCK_RESTRICT, how.ruleset, 0)
    if syscalls.is_known_machine():
        system_call(CAPSET[os.uname().machine], struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))
    if how.filter is not None:
        install_filter(how.filter)


def no_new_privileges() -> None:
    """Forbid that programs started by this process get more rights than it has; seccomp filters require that.

    Raises:
        OSError: the kernel refuses it.
    """
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def install_filter(code: bytes) -> None:
    """Install a seccomp filter on this thread and everything that it starts.

    Raises:
        OSError: the kernel refuses it.
    """
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(code) // 8, ctypes.addressof(held))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends."""
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, number)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: object) -> int:
    """Make a system call of the Linux kernel and return its result.

    Raises:
        OSError: the kernel refuses it.
    """
    found = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return found


def _prctl(option: int, value: object, further: object = None) -> None:
    arguments = [ctypes.c_ulong(x) if isinstance(x, int) else x for x in (value, further)]
    if _libc().prctl(option, *arguments, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")
