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
from shiqrun.rewards.problems import Calls, Check, Problem, Streams, whole
from shiqrun.sandbox.worker import Limits, Outcome, Program

Run = Callable[[Program, Limits], Outcome]
PASSED, WRONG, FAILED = "passed", "wrong_answer", "runtime_error"
TOLERANCE = 1e-5
OUTPUT = 1 << 20
WALL = 5.0
"""Wall time in units of processor time: what a busy machine does not give changes no verdict."""
INTEGER, NUMBER = re.compile(rb"[+-]?[0-9]+"), re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?")
COMPARE = f"""
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
    import json
    from shiqrun.sandbox.values import decode
    found = json.loads(found)
    values = iter(found)
    def replay(*args, **kwargs):
        went, value = next(values)
        if not went:
            raise RuntimeError(value)
        return decode(value)
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
        InputError: the solution does not pass.
    """
    outcome = run(_call(f"{_tested(problem)}\n{RECORD}", "record", problem.entry_point), bounds)
    try:
        [[went, form]] = json.loads(outcome.values)
        if not went:
            raise ValueError(form)
        calls = [(["list", *args[1:]], kwargs) for _, args, kwargs in form[1:]]
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
    outcome = run(Program(program, b"", asked.entry_point, asked.calls), bounds)
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


def _near(one: bytes, other: bytes) -> bool:
    if INTEGER.fullmatch(one) and INTEGER.fullmatch(other):
        return _digits(one) == _digits(other)
    if not (NUMBER.fullmatch(one) and NUMBER.fullmatch(other)):
        return False
    return abs(float(one) - float(other)) < TOLERANCE


def _digits(number: bytes) -> tuple[bool, bytes]:
    digits = number.lstrip(b"+-").lstrip(b"0")
    return number.startswith(b"-") and bool(digits), digits
