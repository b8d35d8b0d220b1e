"""What a program finds of those before it, and how many threads it may make."""

import pytest

from shiqrun.sandbox.worker import Limits, Program, SandboxWorker
from tests.sandbox.here import usable

LIMITS = Limits(cpu=30, wall=100.0, memory=512 << 20, output=1 << 20)
SEARCH = """
import ctypes, gc, os, re, sys
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
reading, writing = os.pipe()

def page(place):  # what is not there is an error, no crash
    wrote = libc.write(writing, ctypes.c_void_p(place), ctypes.c_size_t(4096))
    return os.read(reading, 4096) if wrote > 0 else b""

def spoken(frame):
    while frame:
        yield repr({**frame.f_globals, **frame.f_locals}).encode("utf-8", "replace")
        frame = frame.f_back

def needles():
    yield from spoken(sys._getframe())
    top = libc.sbrk(ctypes.c_long(0))
    near = {(id(x) >> 20) - k for x in [*gc.get_objects(), bytearray(5000), "x" * 300] for k in (-1, 0, 1)}
    places = {*range(top - (48 << 20), top, 4096), *(n << 20 | k << 12 for n in near for k in range(256))}
    for place in places:
        yield page(place)

found = set()
for text in needles():
    found.update(re.findall(rb"needle-[a-z]+", text))
print(b" ".join(sorted(found)).decode())
"""


@pytest.mark.parametrize("backend", ["bwrap", "guard", "rlimits"])
def test_a_program_finds_nothing_of_those_before_it(backend):
    """Neither what they were, nor what they were given, called with, printed and gave: it may be what is right."""
    with SandboxWorker(usable(backend)) as worker:
        code = "def f(x): print('needle-printed', file=__import__('sys').stderr); return 'needle-' + 'given'"
        worker.run(Program(code, b"", "f", [(["list", "needle-asked"], ["dict"])] * 99), LIMITS)
        worker.run(Program("print(input()[::-1] * 99)", b"needle-input tuptuo-eldeen\n"), LIMITS)
        last = worker.run(Program(SEARCH + "# needle-own", b"needle-mine"), LIMITS)
        assert (last.verdict, last.output) == ("ok", b"needle-mine needle-own\n"), last.errors


MANY = """
import threading
for _ in range(NUMBER):
    threading.Thread(target=lambda: None).start()
print("made")
"""


@pytest.mark.parametrize("backend", ["bwrap", "guard", "rlimits"])
def test_a_program_may_make_some_threads_but_not_as_many_as_it_likes(backend):
    with SandboxWorker(usable(backend)) as worker:
        for _ in range(2):  # each time
            assert worker.run(Program(MANY.replace("NUMBER", "200")), LIMITS).output == b"made\n"
        outcome = worker.run(Program(MANY.replace("NUMBER", "300")), LIMITS)
        assert outcome.verdict == "runtime_error"
        assert outcome.errors.rstrip().endswith("can't start new thread")


def test_threads_are_made_also_after_everything_was_closed():
    code = "import os\nprint('closed', flush=True)\nos.closerange(0, 9)\n" + MANY.replace("NUMBER", "9")
    code = code.replace('print("made")', "os._exit(7)")
    with SandboxWorker(usable("guard")) as worker:
        outcome = worker.run(Program(code), LIMITS)
        assert (outcome.verdict, outcome.output) == ("runtime_error", b"closed\n")
