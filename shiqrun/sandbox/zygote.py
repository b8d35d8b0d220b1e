"""The zygote is a small interpreter in the sandbox that waits for requests and forks a supervisor for each program.

Requests come on descriptor 0 and answers go to descriptor 1, as frames: the lengths of a JSON header and of a body,
4 bytes each, then both. The body of a request is the program's input; that of an answer is the program's output and
behind it the values of its calls. A byte before each request says whether it runs another program than the last,
`ANOTHER` or `SAME`.

Only supervisors read and write frames, and a supervisor ends at the byte `ANOTHER`. Programs are forks of forks of this
process, so another program's output, and the values with which it is compared, must never have been in its memory.
"""

import fcntl
import gc
import json
import os
import select
import signal
import struct
import time
from importlib import import_module
from typing import Any, NoReturn

from shiqrun.sandbox import kernel
from shiqrun.sandbox.supervisor import OWN, Supervisor
from shiqrun.sandbox.threads import Threads

PRELOADED = """array ast atexit bisect collections copy datetime decimal fractions functools hashlib heapq io itertools
math operator queue random re statistics string textwrap threading traceback typing"""
"""Modules that programs often import, loaded once before the forks."""
LENGTHS = struct.Struct("<II")
ANOTHER, SAME = b"a", b"s"
WAITING, ENDED, ASKED = 0, 1, 2
PATIENCE, PAUSE = 200, 0.05
"""How often a fork that the kernel refuses is tried again, and the seconds between attempts."""


def main(words: str) -> None:
    """Answer the worker's requests to run programs until the input ends.

    Args:
        words: JSON with `landlock` and `filter`, each needed (true), used where possible (null) or left out (false),
            and the lists of paths `readable` and `devices`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which may still wait for an answer
    requests, answers, nothing = (
        _duplicate_above_own(0),
        _duplicate_above_own(1),
        _duplicate_above_own(os.open("/dev/null", os.O_RDWR)),
    )
    try:
        confinement = _make_confinement(json.loads(words))
    except OSError as error:
        write_frame(answers, {"error": str(error)}, b"")
        return
    for number in range(OWN):  # so that no pipe gets a number that belongs to programs
        os.dup2(nothing, number)
    for name in PRELOADED.split():
        import_module(name)
    write_frame(answers, {"landlock": kernel.landlock_version() if confinement.ruleset is not None else 0}, b"")
    gc.collect()
    gc.freeze()
    state = WAITING
    while state in (WAITING, ASKED):
        state = _run_supervisor(state, requests, answers, confinement)


def _run_supervisor(state: int, requests: int, answers: int, confinement: kernel.Confinement) -> int:
    """Fork a supervisor and wait for its end; return `ASKED` where it read that another program follows."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    poll.poll()
    for _ in range(PATIENCE):
        try:
            pid = os.fork()
        except OSError:  # the machine has no process left for now
            time.sleep(PAUSE)
            continue
        if pid == 0:
            _serve_requests(state, requests, answers, confinement)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return ENDED


def _serve_requests(state: int, requests: int, answers: int, confinement: kernel.Confinement) -> NoReturn:
    code = ENDED
    try:
        kernel.die_with_parent(signal.SIGKILL)
        threads = Threads()
        if state == ASKED or os.read(requests, 1):
            while (asked := read_frame(requests)) is not None:
                found, output, values = Supervisor(*asked, confinement, requests, threads).run()
                write_frame(answers, {**found, "values": len(values)}, output + values)
                if (next_ := os.read(requests, 1)) != SAME:
                    code = ASKED if next_ else ENDED
                    break
    finally:
        os._exit(code)


def _duplicate_above_own(number: int) -> int:
    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, OWN)


def _make_confinement(wanted: dict[str, Any]) -> kernel.Confinement:
    rules = code = None
    if wanted["landlock"] is not False:
        if kernel.landlock_version():
            rules = _move_above_own(kernel.make_ruleset(wanted["readable"], wanted["devices"]))
        elif wanted["landlock"]:
            raise OSError(f"Landlock is not there; it needs {kernel.NEEDED}")
    if wanted["filter"] is not False:
        if kernel.has_seccomp():
            code = kernel.syscalls.program_filter()
        elif wanted["filter"]:
            raise OSError(f"no system call filter is known for {os.uname().machine}")
    return kernel.Confinement(rules, code)


def _move_above_own(number: int) -> int:
    moved = _duplicate_above_own(number)
    os.close(number)
    return moved


def read_frame(source: int) -> tuple[dict[str, Any], bytes] | None:
    """Read a request's frame and return its header and body; None at the end of the input."""
    start = _read_exactly(source, LENGTHS.size)
    if start is None:
        return None
    header, body = (_read_exactly(source, length) for length in LENGTHS.unpack(start))
    return None if header is None or body is None else (json.loads(header), body)


def _read_exactly(source: int, length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        piece = os.read(source, min(length - len(parts), 1 << 20))
        if not piece:
            return None
        parts += piece
    return bytes(parts)


def write_frame(target: int, header: dict[str, Any], body: bytes) -> None:
    """Write an answer as a frame of header and body."""
    text = json.dumps(header).encode()
    left = memoryview(LENGTHS.pack(len(text), len(body)) + text + body)
    while left:
        left = left[os.write(target, left) :]
