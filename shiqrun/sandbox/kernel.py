"""What Linux offers to confine a process without privilege or helper: rlimits, capabilities, Landlock, seccomp."""

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
TCP, BEYOND = 3, 3  # bind and connect; abstract sockets and signals out of the domain
NEEDED = "Linux 5.13 or later with landlock in its list of security modules (lsm=)"

FILES = 32
STACK = 64 << 20


@dataclass(frozen=True)
class Confinement:
    """What is made once and applied in every fork.

    Attributes:
        ruleset: descriptor of a Landlock ruleset, None for none.
        filter: of seccomp, None for none.
    """

    ruleset: int | None
    filter: bytes | None


def landlock() -> int:
    """The version of Landlock's interface, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ABI_QUESTION)))


def filters() -> bool:
    """Whether seccomp filters can be made for this machine."""
    return sys.platform == "linux" and syscalls.known() and _libc().prctl(PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def ruleset(readable: Sequence[str], devices: Sequence[str]) -> int:
    """Descriptor of a Landlock ruleset: reading below `readable`, reading and writing `devices`, nothing else.

    Raises:
        OSError: the kernel refuses it.
    """
    abi = landlock()
    files = FIRST_RIGHTS | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL if abi >= 5 else 0)
    handled = [files, *([TCP] if abi >= 4 else []), *([BEYOND] if abi >= 6 else [])]
    attributes = struct.pack(f"{len(handled)}Q", *handled)
    rules = call(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, rights in ((readable, READ_FILE | READ_DIRECTORY), (devices, READ_FILE | WRITE_FILE)):
        for path in filter(os.path.exists, paths):
            _permit(rules, path, rights)
    return rules


def _permit(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= ~READ_DIRECTORY
        call(LANDLOCK_ADD, rules, RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def confine(how: Confinement, *, cpu: int, memory: int) -> None:
    """This process from now on: limits, no capability, what `how` says. There is no way back.

    Args:
        how: Landlock and seccomp.
        cpu: seconds of processor time.
        memory: bytes of address space.

    Raises:
        OSError, ValueError: something was refused.
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
    _control(PR_SET_DUMPABLE, 0)
    no_new_privileges()
    if how.ruleset is not None:
        call(LANDLOCK_RESTRICT, how.ruleset, 0)
    if syscalls.known():
        call(CAPSET[os.uname().machine], struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))
    if how.filter is not None:
        install(how.filter)


def no_new_privileges() -> None:
    """No program that this process starts gets more rights than it has, which filters need.

    Raises:
        OSError: the kernel refuses it.
    """
    _control(PR_SET_NO_NEW_PRIVS, 1)


def install(code: bytes) -> None:
    """A seccomp filter on this thread and what it starts.

    Raises:
        OSError: the kernel refuses it.
    """
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(code) // 8, ctypes.addressof(held))
    _control(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)


def die_with_parent(number: int) -> None:
    """The signal that this process gets when the one that made it ends."""
    if sys.platform == "linux":
        _control(PR_SET_PDEATHSIG, number)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: object) -> int:
    """What a system call gives.

    Raises:
        OSError: it is refused.
    """
    found = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return found


def _control(option: int, value: object, further: object = None) -> None:
    arguments = [ctypes.c_ulong(x) if isinstance(x, int) else x for x in (value, further)]
    if _libc().prctl(option, *arguments, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")
