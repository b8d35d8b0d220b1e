"""The backends as the rest of the program sees them: sessions in a confined process that may die and is replaced.

A request that needs more processor time or memory than allowed ends the process. Backends are deterministic, so the
sessions that were in it are made again by replaying what they were asked, the fatal call left out.
"""

import contextlib
import json
import selectors
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from typing import Any

from shiqrun.environments.bfcl.samples import BfclSample
from shiqrun.environments.bfcl.worker import OUT_OF_MEMORY
from shiqrun.errors import InputError, TrainingError

CPU_SECONDS = 2.0
"""Processor time of one request: a busy machine does not change what is stopped."""
WALL_SECONDS = 120.0
REPLAY = 10
"""Times as long as a request may take when it is made again: what has passed once is to pass then."""
MOST_STOPPED, MOST_SECONDS = 3, 20.0
"""Calls that were stopped, and processor time of all calls, at which an episode's session is exhausted."""
STOPPED = "Error during execution: the call was stopped: it took too much time or memory"


class Died(Exception):
    """The process ended during a request, by a limit."""


class Killed(Exception):
    """The process ended during a request, by something else."""


@dataclass(frozen=True)
class Verdict:
    """Of a turn: whether it counts (it has a reference answer), whether it is right, and why not."""

    counted: bool
    right: bool
    why: str


class Harness:
    """Opens sessions; a context manager, which ends the process."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        self.cpu_seconds = cpu_seconds
        self.ended = 0  # processes so far: what lived in one of them is gone
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, sample: BfclSample) -> "Session":
        """New backends of a sample.

        Raises:
            InputError: its initial state does not load.
        """
        session = Session(self, sample)
        try:
            session.ask({"do": "open", "sample": sample.row})
        except Died:
            raise session.unloaded("it takes too much time or memory") from None
        return session

    def official(self, sample: BfclSample, turns: list[list[list[str]]]) -> bool:
        """The verdict of the official checker on calls by turn and step, which have run in a session before.

        Raises:
            TrainingError: the process was killed.
        """
        times = 1 + sum(len(step) for turn in turns for step in turn)  # each took less than one request may
        try:
            asked = {"do": "official", "sample": sample.row, "turns": turns, "times": times}
            return bool(self.request(asked)["valid"])
        except Died:
            return False
        except Killed as killed:
            raise TrainingError(f"{killed}, at {sample.id}; is the machine out of memory?") from None

    def request(self, what: dict[str, Any]) -> dict[str, Any]:
        """The process's answer; `times` in what is asked says that it may take as long as so many requests, else one.

        Raises:
            Died: it has none, because a limit was reached.
            Killed: it has none for another reason.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._ended(process) from None
        return self._answer(process, WALL_SECONDS * what.get("times", 1))

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "shiqrun.environments.bfcl.worker", str(self.cpu_seconds)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # a Ctrl-C is for this process, which may still want the answer
        )
        try:
            self._answer(self._process, WALL_SECONDS)
        except (Died, Killed):
            raise InputError(
                f"the process that runs the functions of BFCL does not start; try: {' '.join(command)}"
            ) from None
        return self._process

    def _answer(self, process: "subprocess.Popen[str]", seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            if not ready.select(seconds):
                self.close()
                raise Died
            line = process.stdout.readline()
        if not line:
            raise self._ended(process)
        return dict(json.loads(line))

    def _ended(self, process: "subprocess.Popen[str]") -> Died | Killed:
        """What a process that has ended by itself died of."""
        code = process.wait()
        self.close()
        if code in (-signal.SIGPROF, OUT_OF_MEMORY):
            return Died()
        return Killed(f"the process that runs the functions of BFCL ended with exit code {code}")

    def close(self) -> None:
        """Ends the process; the next request starts another."""
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()
            self._process.wait()
            self._process = None
            self.ended += 1


@dataclass
class Session:
    """One episode's backends.

    Attributes:
        stopped: calls that were ended by a limit.
        seconds: processor time that calls have taken.
    """

    harness: Harness
    sample: BfclSample
    stopped: int = 0
    seconds: float = 0.0
    _name: str = field(default_factory=lambda: uuid.uuid4().hex)
    _asked: list[dict[str, Any]] = field(default_factory=list)
    _lives_in: int = 0
    _broken: bool = False
    _turn: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether the episode has had what time and memory it gets."""
        return self._broken or self.stopped >= MOST_STOPPED or self.seconds > MOST_SECONDS

    def run(self, call: str) -> str:
        """The result of a call that has passed `bfcl.calls`; an error where a limit ended it."""
        if not self._broken:
            try:
                answer = self.ask({"do": "run", "call": call})
                self.seconds += answer["seconds"]
                return str(answer["result"])
            except Died:
                self.seconds += self.harness.cpu_seconds
        self.stopped += 1
        return STOPPED

    def end_turn(self) -> Verdict:
        """The verdict on the turn that the calls so far belong to."""
        counted = bool(self.sample.truth[self._turn])
        self._turn += 1
        if not self._broken:
            try:
                found = self.ask({"do": "end_turn"})
                return Verdict(found["counted"], found["right"], found["why"])
            except Died:
                self._broken = True  # comparing what these calls have made takes too much: no later turn is better
        return Verdict(counted, False, "stopped")

    def close(self) -> None:
        """Forgets the backends."""
        if self._asked and self._lives_in == self.harness.ended:
            with contextlib.suppress(Died, Killed):
                self.harness.request({"do": "close", "session": self._name})
        self._asked.clear()

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, in the state that the former ones have made.

        Raises:
            Died: a limit was reached, by this request or by the former ones together.
            InputError: the sample's initial state does not load.
            TrainingError: the process was killed, and once more when all was made again.
        """
        try:
            answer = self._after_former(what)
        except Killed:
            try:
                answer = self._after_former(what)
            except Killed as twice:
                raise TrainingError(f"{twice}, twice, at {self.sample.id}; is the machine out of memory?") from None
        self._asked.append(what)
        return answer

    def _after_former(self, what: dict[str, Any]) -> dict[str, Any]:
        if self._lives_in != self.harness.ended:
            try:
                for former in self._asked:
                    self._request({**former, "times": REPLAY})
            except Died:
                self._broken = True  # never replayed again: it would end the process of all others each time
                raise
        return self._request(what)

    def _request(self, what: dict[str, Any]) -> dict[str, Any]:
        answer = self.harness.request({**what, "session": self._name})
        self._lives_in = self.harness.ended
        if "error" in answer:
            raise self.unloaded(answer["error"])
        return answer

    def unloaded(self, why: str) -> InputError:
        """What to raise for a sample whose backends cannot be made."""
        return InputError(
            f"{self.sample.source}: the initial state of {self.sample.id} does not load into "
            f"{', '.join(self.sample.classes)}: {why}"
        )
