"""`reward=unit_tests` runs the program in a completion in the sandbox and rewards it where it passes its tests."""

import logging
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge

from shiqrun.errors import InputError
from shiqrun.rewards.grading import PASSED, Run, grade, limits_of_tests, record_calls
from shiqrun.rewards.program_tests import Calls, Check, ProgramTests, extract_code, parse_tests
from shiqrun.rewards.reward import Answered, Progress, Reward
from shiqrun.sandbox.backends import WHAT
from shiqrun.sandbox.choice import Choice, choose_backend
from shiqrun.sandbox.pool import Pool

log = logging.getLogger("shiqrun")
GRADER = 2
"""The version of grading, increased when a program may get another verdict than before; part of the fingerprint."""


class _Task(NamedTuple):
    problem: ProgramTests
    code: str
    source: str


class UnitTests(Reward):
    """A unit-tests reward gives `right` to a program that passes all tests of its example, else `wrong`.

    `program_tests` describes the tests, `grading` how a verdict is reached.

    Args:
        right, wrong: reward units.
        timeout: seconds of processor time for a test, or for all calls of a function; five times as much wall time.
        memory: MiB of address space.
        max_tests: largest number of tests of an example.
        workers: number of programs at once; None for one on each core.
        sandbox: `auto`, `bwrap`, `guard` or `rlimits`.

    Raises:
        InputError: `right` is not above `wrong`, or no sandbox of that kind works here.
    """

    def __init__(
        self,
        *,
        right: float,
        wrong: float,
        timeout: Annotated[int, Ge(1)],
        memory: Annotated[int, Ge(64)],
        max_tests: Annotated[int, Ge(1)],
        workers: Annotated[int, Ge(1)] | None,
        sandbox: Choice,
    ) -> None:
        if right <= wrong:
            raise InputError(f"reward.right={right:g}, reward.wrong={wrong:g}: a right answer must get more")
        self.right: float | None = right
        self._right, self._wrong = right, wrong
        self._bounds, self._max_tests = limits_of_tests(timeout, memory), max_tests
        self._recorded: dict[Check, Calls] = {}
        self._lock = threading.Lock()
        self._backend = choose_backend(sandbox)
        if self._backend.name == "rlimits":
            log.warning(f"reward.sandbox=rlimits: programs run with {WHAT['rlimits']}")
        self._pool = Pool(self._backend, workers or len(os.sched_getaffinity(0)))
        self.close = weakref.finalize(self, self._pool.close)

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return the reward of each completion, `right` or `wrong`, reward units.

        Raises:
            InputError: an item has no tests, or malformed ones.
            TrainingError: the sandbox cannot start programs any more.
        """
        return [self.worth(word) for word in self.verdicts(items, progress)]

    def verdicts(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[str]:
        """Return the verdict on each completion: `passed`, `wrong_answer`, or how its program ended.

        Raises:
            InputError, TrainingError: as `score`.
        """
        tasks = [_Task(parse_tests(x.answer, x.source, self._max_tests), extract_code(x.text), x.source) for x in items]
        return [*progress(self._pool.map(self._verdict, tasks), "running programs")]

    def worth(self, word: str) -> float:
        """Return the reward of a verdict."""
        return self._right if word == PASSED else self._wrong

    def _verdict(self, run: Run, task: _Task) -> str:
        calls = self._calls(run, task) if isinstance(task.problem, Check) else None
        return grade(task.problem, task.code, run, self._bounds, calls)

    def _calls(self, run: Run, task: _Task) -> Calls:
        assert isinstance(task.problem, Check)
        if task.problem not in self._recorded:
            found = record_calls(task.problem, run, self._bounds, task.source)
            with self._lock:
                self._recorded[task.problem] = found
        return self._recorded[task.problem]

    def fingerprint(self) -> str:
        """Return the settings that decide a verdict, with the version of Python that runs the programs."""
        b, python = self._bounds, f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"unit_tests {GRADER} {self._right} {self._wrong} cpu={b.cpu} wall={b.wall} {b.memory} python={python}"

    def about(self) -> dict[str, Any]:
        """Return the reward's name, its two values, the limits of programs and the sandbox."""
        seconds, mebibytes = self._bounds.cpu, self._bounds.memory >> 20
        settings = {"right": self._right, "wrong": self._wrong, "timeout": seconds, "memory": mebibytes}
        return {"name": "unit_tests", **settings, "sandbox": self._backend.name}
