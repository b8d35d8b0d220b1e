"""Whether a program does what a problem asks for: it runs in a sandbox, and its output or values are judged outside.

What is printed is compared here. Values that a function gave are untrusted data, and code of the data set may be what
judges them: both meet in a process of the sandbox in which no line of the program has run.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shiqrun.errors import InputError
from shiqrun.rewards.problems import LARGEST, Calls, Check, Problem, Streams, whole
from shiqrun.sandbox.worker import Limits, Outcome, Program

Run = Callable[[Program, Limits], Outcome]
PASSED, WRONG, FAILED = "passed", "wrong_answer", "runtime_error"
TOLERANCE = 1e-5
OUTPUT = 1 << 20
WALL = 5.0
"""Wall time in units of processor time: what a busy machine does not give changes no verdict."""
INTEGER = re.compile(rb"([+-]?[0-9]+)(?:\.0*)?")
NUMBER = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?")  # each fails in linear time
EXACT = 15
"""Decimal digits that a float always holds."""
DEEP = "import sys; sys.setrecursionlimit(1 << 16)  # values as deep as came through are judged\n"
COMPARE = f"""
{DEEP}
import json
from shiqrun.sandbox.values import decode, same
def judge(expected, found):
    found = json.loads(found)
    if not all(went for went, _ in found):
        return "{FAILED}"
    right = len(found) == len(expected) and all(same(e, decode(f), {TOLERANCE}) for e, (_, f) in zip(expected, found))
    return "{PASSED}" if right else "{WRONG}"
"""
RECORD = """
def record(name):
    import copy
    function, calls = globals()[name], []
    def recorder(*args, **kwargs):
        calls.append(copy.deepcopy((args, kwargs)))
        return function(*args, **kwargs)
    check(recorder)
    return calls
"""
REPLAY = f"""
def judge(found):
    import builtins, json
    from shiqrun.sandbox.values import decode
    {DEEP}
    found = json.loads(found)
    values = iter(found)
    def replay(*args, **kwargs):
        went, value = next(values, (False, ""))
        if went:
            return decode(value)
        kind = getattr(builtins, value, None)  # check may expect an exception, but not one that ends its loops
        fit = isinstance(kind, type) and issubclass(kind, Exception) and kind not in (StopIteration, StopAsyncIteration)
        raise kind() if fit else RuntimeError(value)
    try:
        check(replay)
    except Exception:
        return "{WRONG}" if all(went for went, _ in found) else "{FAILED}"
    return "{PASSED}"
"""


def limits(timeout: int, memory: int) -> Limits:
    """Of a program that may take `timeout` seconds of processor time and `memory` MiB."""
    return Limits(cpu=timeout, wall=WALL * timeout, memory=memory << 20, output=OUTPUT)


def recorded(problem: Check, run: Run, bounds: Limits, source: str) -> Calls:
    """The calls that a problem's `check` makes when its own solution is tested, without expected values.

    Raises:
        InputError: the solution does not pass, or `check` does not call it.
    """
    wide = replace(bounds, output=LARGEST)
    outcome = run(_call(f"{_tested(problem)}\n{RECORD}", "record", problem.entry_point), wide)
    try:
        [[went, form]] = json.loads(outcome.values)
        if not went:
            raise ValueError(form)
        calls = [(["list", *args[1:]], kwargs) for _, args, kwargs in form[1:]]
        if not calls:
            raise ValueError("they call it never, so that every program would pass")
    except (ValueError, TypeError) as error:
        words = outcome.errors.strip().splitlines()
        raise InputError(
            f"{source}: the problem's own solution does not pass its tests ({outcome.verdict}: "
            f"{words[-1] if words else error}); leave it out"
        ) from None
    return Calls(problem.prefix, problem.entry_point, tuple(calls), ())


def verdict(problem: Problem, code: str, run: Run, bounds: Limits, calls: Calls | None = None) -> str:
    """`passed`, `wrong_answer`, or how the program ended (`sandbox.worker.Outcome.verdict`).

    Args:
        problem: what is asked.
        code: the program of a completion.
        run: runs one program.
        bounds: of each test, or of all calls together.
        calls: `recorded` of a problem with a `check`.
    """
    if isinstance(problem, Streams):
        return _streams(problem, code, run, bounds)
    asked = problem if isinstance(problem, Calls) else calls
    assert asked is not None
    program = whole(problem.prefix, problem.entry_point, code)
    room = max(bounds.output, 2 * len(json.dumps([asked.calls, asked.expected])))
    outcome = run(Program(program, b"", asked.entry_point, asked.calls), replace(bounds, output=room))
    if outcome.verdict != "ok":
        return outcome.verdict
    found = outcome.values.decode("utf-8", "replace")
    if isinstance(problem, Calls):
        judge = _call(COMPARE, "judge", ["list", *problem.expected], found)
    else:
        judge = _call(f"{_tested(problem)}\n{REPLAY}", "judge", found)
    said = run(judge, replace(bounds, output=OUTPUT))
    words = {json.dumps([[True, word]]).encode(): word for word in (PASSED, FAILED)}
    return words.get(said.values, WRONG) if said.verdict == "ok" else WRONG


def _tested(problem: Check) -> str:
    """The problem's own solution and test; the latter may call the former."""
    return whole(problem.prefix, problem.entry_point, problem.solution) + f"\n{problem.check}"


def _call(code: str, name: str, *arguments: Any) -> Program:
    """Of a function of trusted code; the arguments are forms of values."""
    return Program(code, b"", name, ((["list", *arguments], ["dict"]),))


def _streams(problem: Streams, code: str, run: Run, bounds: Limits) -> str:
    for given, expected in problem.tests:
        outcome = run(Program(code, given), replace(bounds, output=max(bounds.output, 2 * len(expected))))
        if outcome.verdict != "ok":
            return outcome.verdict
        if not alike(expected, outcome.output):
            return WRONG
    return PASSED


def alike(expected: bytes, found: bytes) -> bool:
    """Whether two outputs have the same words: case aside, numbers up to 1e-5, integers exactly."""
    wanted, there = expected.lower().split(), found.lower().split()
    return len(wanted) == len(there) and all(a == b or _near(a, b) for a, b in zip(wanted, there, strict=True))


def _near(wanted: bytes, there: bytes) -> bool:
    one, other = INTEGER.fullmatch(wanted), INTEGER.fullmatch(there)
    if one and other:
        return _digits(one[1]) == _digits(other[1])
    if one and len(one[1]) > EXACT:
        return False  # 1e30 is not the number of 31 digits that was asked for
    if not (NUMBER.fullmatch(wanted) and NUMBER.fullmatch(there)):
        return False
    return abs(float(wanted) - float(there)) < TOLERANCE


def _digits(number: bytes) -> tuple[bool, bytes]:
    digits = number.lstrip(b"+-").lstrip(b"0")
    return number.startswith(b"-") and bool(digits), digits
