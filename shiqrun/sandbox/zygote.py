"""The process in the sandbox: a small interpreter that is ready, and forks a supervisor for every request.

Frames on descriptors 0 and 1: the lengths of a JSON header and of a body, 4 bytes each, then both. A request's body is
the program's input; an answer's is the program's output and behind it the values of its calls. Before a request goes a
byte, `ANOTHER` or `SAME`: whether it runs another program than the last. Supervisors alone read and write all this, and
one ends when the byte says `ANOTHER`: programs are copies of copies of this process, and what another program printed,
or what its values are compared with, must never have been in its memory.
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
"""What programs often import: loaded once, before the forks."""
LENGTHS = struct.Struct("<II")
ANOTHER, SAME = b"a", b"s"
WAITING, ENDED, ASKED = 0, 1, 2
PATIENCE, PAUSE = 200, 0.05
"""How often a fork is tried again that the machine refuses, and the time between, seconds."""


def main(words: str) -> None:
    """Answers requests until the input ends.

    Args:
        words: JSON: `landlock` and `filter`, each needed (true), tried (null) or left out (false); `readable` and
            `devices`, paths.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the run, which may still want an answer
    requests, answers, nothing = _own(0), _own(1), _own(os.open("/dev/null", os.O_RDWR))
    try:
        confinement = _confinement(json.loads(words))
    except OSError as error:
        write(answers, {"error": str(error)}, b"")
        return
    for number in range(OWN):  # so that no pipe gets a number that a program's own is moved to
        os.dup2(nothing, number)
    for name in PRELOADED.split():
        import_module(name)
    write(answers, {"landlock": kernel.landlock() if confinement.ruleset is not None else 0}, b"")
    gc.collect()
    gc.freeze()
    state = WAITING
    while state in (WAITING, ASKED):
        state = _supervised(state, requests, answers, confinement)


def _supervised(state: int, requests: int, answers: int, confinement: kernel.Confinement) -> int:
    """How a supervisor ended: `ASKED`, where it has read that another program is asked for; `ENDED` or a failure."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    poll.poll()
    for _ in range(PATIENCE):
        try:
            pid = os.fork()
        except OSError:  # no process is left on this machine for now
            time.sleep(PAUSE)
            continue
        if pid == 0:
            _supervise(state, requests, answers, confinement)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return ENDED


def _supervise(state: int, requests: int, answers: int, confinement: kernel.Confinement) -> NoReturn:
    code = ENDED
    try:
        kernel.die_with_parent(signal.SIGKILL)
        threads = Threads()
        if state == ASKED or os.read(requests, 1):
            while (asked := read(requests)) is not None:
                found, output, values = Supervisor(*asked, confinement, requests, threads).answer()
                write(answers, {**found, "values": len(values)}, output + values)
                if (next_ := os.read(requests, 1)) != SAME:
                    code = ASKED if next_ else ENDED
                    break
    finally:
        os._exit(code)


def _own(number: int) -> int:
    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, OWN)


def _confinement(wanted: dict[str, Any]) -> kernel.Confinement:
    rules = code = None
    if wanted["landlock"] is not False:
        if kernel.landlock():
            rules = _moved(kernel.ruleset(wanted["readable"], wanted["devices"]))
        elif wanted["landlock"]:
            raise OSError(f"Landlock is not there; it needs {kernel.NEEDED}")
    if wanted["filter"] is not False:
        if kernel.filters():
            code = kernel.syscalls.allowing()
        elif wanted["filter"]:
            raise OSError(f"no system call filter is known for {os.uname().machine}")
    return kernel.Confinement(rules, code)


def _moved(number: int) -> int:
    moved = _own(number)
    os.close(number)
    return moved


def read(source: int) -> tuple[dict[str, Any], bytes] | None:
    """A frame, None at the end of the input."""
    start = _exactly(source, LENGTHS.size)
    if start is None:
        return None
    header, body = (_exactly(source, length) for length in LENGTHS.unpack(start))
    return None if header is None or body is None else (json.loads(header), body)


def _exactly(source: int, length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        piece = os.read(source, min(length - len(parts), 1 << 20))
        if not piece:
            return None
        parts += piece
    return bytes(parts)


def write(target: int, header: dict[str, Any], body: bytes) -> None:
    """Sends a frame."""
    text = json.dumps(header).encode()
    left = memoryview(LENGTHS.pack(len(text), len(body)) + text + body)
    while left:
        left = left[os.write(target, left) :]
