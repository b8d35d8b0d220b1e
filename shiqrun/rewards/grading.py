"""`grade` decides whether a program passes its tests: the sandbox runs it, another process judges what it gives.

What a program prints is compared in the trainer. Values that a function returned are untrusted data, and code of the
data set may judge them: that happens in a sandbox process in which no line of the program has run.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shiqrun.errors import InputError
from shiqrun.rewards.program_tests import LARGEST, Calls, Check, ProgramTests, Streams, complete_program
from shiqrun.sandbox.worker import Limits, Outcome, Program

Run = Callable[[Program, Limits], Outcome]
PASSED, WRONG, FAILED = "passed", "wrong_answer", "runtime_error"
TOLERANCE = 1e-5  # of floats, absolute
OUTPUT = 1 << 20  # bytes
WALL = 5.0
"""The limit of wall time, as a multiple of that of processor time, so that a busy machine changes no verdict."""
INTEGER = re.compile(rb"([+-]?[0-9]+)(?:\.0*)?")
NUMBER = re.compile(
    rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?"
)  # both regular expressions fail in linear time
EXACT = 15
"""Decimal digits that a float represents exactly."""
DEEP = "import sys; sys.setrecursionlimit(1 << 16)  # the judge must handle every depth that was encoded\n"
COMPARE = f"""
{DEEP}
import json
from shiqrun.sandbox.values import decode, equal_values
def judge(expected, found):
    found = json.loads(found)
    if not all(went for went, _ in found):
        return "{FAILED}"
    right = len(found) == len(expected) and all(
        equal_values(e, decode(f), {TOLERANCE}) for e, (_, f) in zip(expected, found)
    )
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


def limits_of_tests(timeout: int, memory: int) -> Limits:
    """Return the limits of a program under test: `timeout` seconds of processor time, `memory` MiB of address space."""
    return Limits(cpu=timeout, wall=WALL * timeout, memory=memory << 20, output=OUTPUT)


def record_calls(problem: Check, run: Run, bounds: Limits, source: str) -> Calls:
    """Record the calls that a problem's `check` makes of the problem's own solution; they have no expected values.

    Raises:
        InputError: the solution fails the check, or the check calls no function.
    """
    wide = replace(bounds, output=LARGEST)
    outcome = run(_call_of(f"{_solution_with_check(problem)}\n{RECORD}", "record", problem.entry_point), wide)
    try:
        [[went, form]] = json.loads(outcome.values)
        if not went:
            raise ValueError(form)
        calls = [(["list", *args[1:]], kwargs) for _, args, kwargs in form[1:]]
        if not calls:
            raise ValueError("the tests never call it, so that every program would pass")
    except (ValueError, TypeError) as error:
        words = outcome.errors.strip().splitlines()
        raise InputError(
            f"{source}: the problem's own solution does not pass its tests ({outcome.verdict}: "
            f"{words[-1] if words else error}); leave it out"
        ) from None
    return Calls(problem.prefix, problem.entry_point, tuple(calls), ())


def grade(problem: ProgramTests, code: str, run: Run, bounds: Limits, calls: Calls | None = None) -> str:
    """Run a program on its tests; return `passed`, `wrong_answer`, or how it ended (`sandbox.worker.Outcome.verdict`).

    Args:
        problem: the tests.
        code: the program in a completion.
        run: runs one program in the sandbox.
        bounds: limits of each test, or of all calls together.
        calls: for tests with a `check`, the result of `record_calls`.
    """
    if isinstance(problem, Streams):
        return _grade_streams(problem, code, run, bounds)
    tested = problem if isinstance(problem, Calls) else calls
    assert tested is not None
    program = complete_program(problem.prefix, problem.entry_point, code)
    room = max(bounds.output, 2 * len(json.dumps([tested.calls, tested.expected])))
    outcome = run(Program(program, b"", tested.entry_point, tested.calls), replace(bounds, output=room))
    if outcome.verdict != "ok":
        return outcome.verdict
    found = outcome.values.decode("utf-8", "replace")
    if isinstance(problem, Calls):
        judge = _call_of(COMPARE, "judge", ["list", *problem.expected], found)
    else:
        judge = _call_of(f"{_solution_with_check(problem)}\n{REPLAY}", "judge", found)
    judged = run(judge, replace(bounds, output=OUTPUT))
    verdicts = {json.dumps([[True, word]]).encode(): word for word in (PASSED, FAILED)}
    return verdicts.get(judged.values, WRONG) if judged.verdict == "ok" else WRONG


def _solution_with_check(problem: Check) -> str:
    """Return the problem's own solution and its check, which may call the solution."""
    return complete_program(problem.prefix, problem.entry_point, problem.solution) + f"\n{problem.check}"


def _call_of(code: str, name: str, *arguments: Any) -> Program:
    """Return a program that calls one function of trusted code, with encoded arguments."""
    return Program(code, b"", name, ((["list", *arguments], ["dict"]),))


def _grade_streams(problem: Streams, code: str, run: Run, bounds: Limits) -> str:
    for given, expected in problem.tests:
        outcome = run(Program(code, given), replace(bounds, output=max(bounds.output, 2 * len(expected))))
        if outcome.verdict != "ok":
            return outcome.verdict
        if not outputs_agree(expected, outcome.output):
            return WRONG
    return PASSED


def outputs_agree(expected: bytes, found: bytes) -> bool:
    """Return whether two outputs of programs agree word by word: case aside, numbers up to 1e-5, integers exactly."""
    ours, theirs = expected.lower().split(), found.lower().split()
    return len(ours) == len(theirs) and all(a == b or _numbers_agree(a, b) for a, b in zip(ours, theirs, strict=True))


def _numbers_agree(expected: bytes, found: bytes) -> bool:
    one, other = INTEGER.fullmatch(expected), INTEGER.fullmatch(found)
    if one and other:
        return _sign_and_digits(one[1]) == _sign_and_digits(other[1])
    if one and len(one[1]) > EXACT:
        return False  # so that 1e30 does not pass for a number of 31 digits
    if not (NUMBER.fullmatch(expected) and NUMBER.fullmatch(found)):
        return False
    return abs(float(expected) - float(found)) < TOLERANCE


def _sign_and_digits(number: bytes) -> tuple[bool, bytes]:
    digits = number.lstrip(b"+-").lstrip(b"0")
    return number.startswith(b"-") and bool(digits), digits
