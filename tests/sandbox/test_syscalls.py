"""The filter of system calls, read by a naive interpreter of the kernel's instructions, on both architectures."""

import re
import struct
from pathlib import Path

import pytest

from shiqrun.sandbox import syscalls

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
KILLED, REFUSED, UNKNOWN, GRANTED = "killed", "EPERM", "ENOSYS", "granted"
ANSWERS = {0x80000000: KILLED, 0x00050001: REFUSED, 0x00050026: UNKNOWN, 0x7FFF0000: GRANTED}
REACHING = """
socket connect bind sendto execve kill tgkill tkill ptrace process_vm_readv unlinkat renameat2 mkdirat truncate
ftruncate fchmod fchownat setxattr utimensat symlinkat linkat mount unshare setns setsid setpgid setpriority bpf
memfd_create shmget keyctl perf_event_open personality chroot setuid capset seccomp userfaultfd
"""
THREAD = 0x3D0F00
"""The flags with which a thread is made."""


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request, monkeypatch):
    monkeypatch.setattr(syscalls.platform, "machine", lambda: request.param)
    return request.param


def decided(number, *arguments, arch):
    """What the filter says to a call."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *[*arguments, *[0] * 6][:6])
    steps = [*struct.iter_unpack("HBBI", syscalls.program_filter())]
    at, held = 0, 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        match code:
            case 0x20:
                held = struct.unpack_from("<I", data, operand)[0]
            case 0x15:
                at += yes if held == operand else no
            case 0x35:
                at += yes if held >= operand else no
            case 0x45:
                at += yes if held & operand else no
            case 0x06:
                return ANSWERS[operand]
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def of(machine, name, *arguments):
    return decided(numbers(machine)[name], *arguments, arch=syscalls.AUDIT_ARCH[machine])


def numbers(machine):
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", header.read_text())
    names = {name: int(number) for name, number in found}
    return {"newfstatat": names.get("fstatat"), **names}  # named otherwise where all calls are of 64 bits


def test_the_numbers_are_the_kernels(machine):
    column, theirs = syscalls.COLUMN[machine], numbers(machine)
    plain = {name: both[column] for name, both in syscalls.ALLOWED.items()}
    conditional = {name: both[column] for name, (both, _, _) in syscalls.WITH_ARGUMENT.items()}
    ours = {**plain, **conditional, "clone": syscalls.CLONE[column]}
    assert ours == {name: theirs.get(name) for name in ours}


@pytest.mark.parametrize("name", ["read", "write", "mmap", "futex", "openat", "exit_group", "getrandom", "sysinfo"])
def test_computing_is_granted(machine, name):
    assert of(machine, name) == GRANTED


@pytest.mark.parametrize(
    "name",
    REACHING.split(),
)
def test_reaching_out_is_refused(machine, name):
    assert of(machine, name) == REFUSED


def test_a_thread_may_be_made_and_a_process_may_not(machine):
    assert of(machine, "clone", THREAD) == GRANTED
    assert of(machine, "clone", 17) == REFUSED
    assert of(machine, "clone3") == UNKNOWN
    if machine == "x86_64":
        assert of(machine, "fork") == of(machine, "vfork") == REFUSED


@pytest.mark.parametrize("name", ["io_uring_setup", "pidfd_open", "openat2", "landlock_create_ruleset"])
def test_young_calls_are_not_there(machine, name):
    assert of(machine, name) == UNKNOWN


def test_arguments_decide(machine):
    assert of(machine, "fcntl", 1, 3) == GRANTED
    assert of(machine, "fcntl", 1, 8) == REFUSED  # F_SETOWN
    assert of(machine, "ioctl", 1, 0x5401) == GRANTED
    assert of(machine, "ioctl", 1, 0x5412) == REFUSED  # TIOCSTI
    assert of(machine, "prlimit64", 0) == GRANTED
    assert of(machine, "prlimit64", 1) == REFUSED
    assert of(machine, "prctl", 15) == GRANTED
    assert of(machine, "prctl", 4) == REFUSED  # PR_SET_DUMPABLE


def test_other_instruction_sets_are_killed(machine):
    other = next(arch for name, arch in syscalls.AUDIT_ARCH.items() if name != machine)
    assert decided(1, arch=other) == KILLED
    assert decided(0x40000001, arch=syscalls.AUDIT_ARCH[machine]) == KILLED  # x32
