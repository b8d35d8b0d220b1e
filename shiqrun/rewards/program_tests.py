"""`parse_tests` reads the tests of a programming problem from a data set; they are never passed to the program.

The column `tests` has one of three forms:

    [{"input": text, "output": text}, ...]                                   reads and prints
    {"entry_point": name, "calls": [{"args": [...], "kwargs": {...}, "output": value}, ...]}       calls of a function
    {"entry_point": name, "check": code, "solution": code}                   code `check(candidate)` that tests it

`kwargs` may be left out. The last two forms may have a `prefix`: code before the completion, which either continues it
or defines the function itself (HumanEval's `prompt`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shiqrun.errors import InputError
from shiqrun.sandbox.values import encode

LARGEST = 64 << 20
"""The largest number of bytes of one test's input or output."""
FORMS = (
    'a list of {"input": text, "output": text}, or {"entry_point": name, "calls": [{"args": [...], "output": value}]}'
)
FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[ \t]*$")
STATEMENT = re.compile(r"^(?:(?:async|def|class|import|from|if|for)\b|\w+\s*=)", re.MULTILINE)
PYTHON = ("python", "python3", "py")


@dataclass(frozen=True)
class Streams:
    """Streams are the tests of a program that reads and prints: each has an input and an expected output, UTF-8."""

    tests: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Calls:
    """Calls are the tests of a function: (arguments, keywords) of each call and the expected values, all encoded."""

    prefix: str
    entry_point: str
    calls: tuple[tuple[Any, Any], ...]
    expected: tuple[Any, ...]


@dataclass(frozen=True)
class Check:
    """A check is code `check(candidate)` that tests a function, with a right `solution`."""

    prefix: str
    entry_point: str
    check: str
    solution: str


ProgramTests = Streams | Calls | Check


def parse_tests(tests: Any, source: str, most: int) -> ProgramTests:
    """Parse the column `tests` of a row.

    Args:
        tests: value of the column.
        source: where the row came from, for messages.
        most: largest number of tests.

    Raises:
        InputError: there are no tests, more than `most`, or they have none of the three forms.
    """
    if tests is None:
        raise InputError(f"{source}: no tests to run; reward=unit_tests needs a column `tests`: {FORMS}")
    given = tests.get("calls", [tests]) if isinstance(tests, Mapping) else tests
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"{source}: tests are {_abbreviate(tests)}; expected {FORMS}")
    if not given:
        raise InputError(f"{source}: the problem has no tests, so that every program would pass; leave it out")
    if len(given) > most:
        raise InputError(
            f"{source}: the problem has {len(given):,} tests, more than reward.max_tests={most:,}; raise it, or "
            "leave out some of the tests"
        )
    if not isinstance(tests, Mapping):
        return Streams(tuple(_parse_stream(test, f"{source}: test {i}") for i, test in enumerate(given, 1)))
    prefix, name = tests.get("prefix") or "", tests.get("entry_point")
    if not isinstance(name, str) or not name.isidentifier() or not isinstance(prefix, str):
        raise InputError(f"{source}: tests have entry_point {_abbreviate(name)}; expected the name of a function")
    if "calls" not in tests:
        return _parse_check(tests, prefix, name, source)
    calls = [_parse_call(call, f"{source}: call {i}") for i, call in enumerate(given, 1)]
    return Calls(prefix, name, tuple(c[:2] for c in calls), tuple(c[2] for c in calls))


def _parse_stream(test: Any, place: str) -> tuple[bytes, bytes]:
    if not isinstance(test, Mapping) or not all(isinstance(test.get(key), str) for key in ("input", "output")):
        raise InputError(f'{place} is {_abbreviate(test)}; expected {{"input": text, "output": text}}')
    try:
        given, expected = (test[key].encode() for key in ("input", "output"))
    except UnicodeEncodeError:
        raise InputError(f"{place} is no valid text: it holds half of a surrogate pair") from None
    if max(len(given), len(expected)) > LARGEST:
        raise InputError(f"{place} has more than {LARGEST >> 20} MiB of input or output; leave it out")
    return given, expected


def _parse_call(call: Any, place: str) -> tuple[Any, Any, Any]:
    if not isinstance(call, Mapping) or "output" not in call or not isinstance(call.get("args", []), list):
        raise InputError(
            f'{place} is {_abbreviate(call)}; expected {{"args": [...], "kwargs": {{...}}, "output": value}}'
        )
    keywords = call.get("kwargs") or {}
    if not isinstance(keywords, dict):
        raise InputError(f"{place}: kwargs are {_abbreviate(keywords)}; expected an object of names and values")
    try:
        return encode(call.get("args", [])), encode(keywords), encode(call["output"])
    except (TypeError, RecursionError) as error:
        raise InputError(f"{place}: {error}; expected literals") from None


def _parse_check(tests: Mapping[str, Any], prefix: str, name: str, source: str) -> Check:
    for key in ("check", "solution"):
        if not isinstance(tests.get(key), str):
            raise InputError(f"{source}: tests have {key} {_abbreviate(tests.get(key))}; expected {FORMS}")
    return Check(prefix, name, tests["check"], tests["solution"])


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def extract_code(text: str) -> str:
    """Return the program in a completion: its last ```python block, else its last block without a language, else all.

    A last block that is not closed, for instance because the completion was cut off, reaches to the end.
    """
    blocks: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.splitlines(keepends=True):
        fence = FENCE.match(line.rstrip("\r\n"))
        if fence and not (inside and fence[1]):
            inside = not inside
            if inside:
                blocks.append((fence[1].lower(), []))
        elif inside:
            blocks[-1][1].append(line)
    for languages in (PYTHON, ("",)):
        fitting = [lines for language, lines in blocks if language in languages]
        if fitting:
            return "".join(fitting[-1])
    return text


def complete_program(prefix: str, name: str, code: str) -> str:
    """Return the program of a completion that continues `prefix`, or that defines the function `name` itself.

    In the second case the head of the function at the end of the prefix, which may lack a body, is dropped.
    """
    head = re.compile(rf"^(?:async\s+)?(?:def|class)\s+{name}\b|^{name}\s*=", re.MULTILINE)
    if not head.search(code):
        return prefix + code
    heads = [*head.finditer(prefix)]
    if heads and not STATEMENT.search(prefix, heads[-1].end()):
        prefix = prefix[: heads[-1].start()]
    return f"{prefix}\n{code}"
