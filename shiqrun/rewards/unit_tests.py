"""`reward=unit_tests`: whether the program of a completion passes the tests of its problem. It runs in a sandbox."""

import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge

from shiqrun.errors import InputError
from shiqrun.rewards.grading import PASSED, Run, limits, recorded, verdict
from shiqrun.rewards.problems import Calls, Check, Problem, code_of, problem
from shiqrun.rewards.reward import Answered, Progress, Reward
from shiqrun.sandbox.backends import WHAT
from shiqrun.sandbox.choice import Choice, choose
from shiqrun.sandbox.pool import Pool
from shiqrun.types import Message

log = logging.getLogger("shiqrun")
GRADER = 2
"""Goes up when a program may get another verdict than before."""


class _Task(NamedTuple):
    problem: Problem
    code: str
    source: str


class UnitTests(Reward):
    """Runs programs; what each is judged by is in `rewards.problems`, how in `rewards.grading`.

    Args:
        right, wrong: reward units.
        timeout: seconds of processor time for a test, or for all calls of a function; the wall time may be five times
            as long.
        memory: MiB of address space.
        max_tests: tests that a problem may have.
        workers: programs at once; None: one a core.
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
        self._bounds, self._max_tests = limits(timeout, memory), max_tests
        self._recorded: dict[Check, Calls] = {}
        self._lock = threading.Lock()
        self._backend = choose(sandbox)
        if self._backend.name == "rlimits":
            log.warning(f"reward.sandbox=rlimits: programs run with {WHAT['rlimits']}")
        self._pool = Pool(self._backend, workers or len(os.sched_getaffinity(0)))
        self.close = weakref.finalize(self, self._pool.close)

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """`right` or `wrong` an item.

        Raises:
            InputError: an item without tests, or with tests that are none.
            TrainingError: the sandbox starts no program any more.
        """
        return [self.worth(word) for word in self.verdicts(items, progress)]

    def verdicts(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[str]:
        """How each item fared: `passed`, `wrong_answer`, or how its program ended.

        Raises:
            InputError, TrainingError: as `score`.
        """
        tasks = [_Task(problem(x.answer, x.source, self._max_tests), code_of(x.text), x.source) for x in items]
        return [*progress(self._pool.map(self._verdict, tasks), "running programs")]

    def worth(self, word: str) -> float:
        """The reward of a verdict."""
        return self._right if word == PASSED else self._wrong

    def _verdict(self, run: Run, task: _Task) -> str:
        calls = self._calls(run, task) if isinstance(task.problem, Check) else None
        return verdict(task.problem, task.code, run, self._bounds, calls)

    def _calls(self, run: Run, task: _Task) -> Calls:
        assert isinstance(task.problem, Check)
        if task.problem not in self._recorded:
            found = recorded(task.problem, run, self._bounds, task.source)
            with self._lock:
                self._recorded[task.problem] = found
        return self._recorded[task.problem]

    def fingerprint(self) -> str:
        """The settings that decide a verdict, and the version of Python that runs the programs."""
        b, python = self._bounds, f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"unit_tests {GRADER} {self._right} {self._wrong} cpu={b.cpu} wall={b.wall} {b.memory} python={python}"

    def refuse_seen(self, prompts: Iterable[Sequence[Message]]) -> None:
        """Nothing: it was not trained."""

    def about(self) -> dict[str, Any]:
        """Its name, both rewards, the limits and how programs are confined."""
        seconds, mebibytes = self._bounds.cpu, self._bounds.memory >> 20
        said = {"right": self._right, "wrong": self._wrong, "timeout": seconds, "memory": mebibytes}
        return {"name": "unit_tests", **said, "sandbox": self._backend.name}
