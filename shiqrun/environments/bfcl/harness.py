"""The harness runs BFCL's backends in a confined process, which a limit may end and which is then replaced.

A request that needs more processor time or memory than allowed ends the process. Backends are deterministic, so the
harness restores the sessions of a dead process by replaying their requests, without the one that ended it.
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
"""Most processor time of one request; unlike wall time, it does not depend on how busy the machine is."""
WALL_SECONDS = 120.0
REPLAY = 10
"""How many times as long a replayed request may take: a request that has passed once must pass again."""
MOST_STOPPED, MOST_SECONDS = 3, 20.0
"""Number of stopped calls, and processor time of all calls, at which an episode's session is exhausted."""
STOPPED = "Error during execution: the call was stopped: it took too much time or memory"


class Died(Exception):
    """A limit ended the process during a request."""


class Killed(Exception):
    """Something other than a limit ended the process during a request."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a turn: whether it counts (has a reference answer), whether it is right, and why not."""

    counted: bool
    right: bool
    why: str


class Harness:
    """The owner of the confined process, which opens sessions in it; a context manager, which ends the process."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        self.cpu_seconds = cpu_seconds
        self.ended = 0  # processes so far: what lived in one of them is gone
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, sample: BfclSample) -> "Session":
        """Open a session with new backends of a sample.

        Raises:
            InputError: the initial state of the sample does not load.
        """
        session = Session(self, sample)
        try:
            session.ask({"do": "open", "sample": sample.row})
        except Died:
            raise session.unloaded("it takes too much time or memory") from None
        return session

    def official(self, sample: BfclSample, turns: list[list[list[str]]]) -> bool:
        """Return the official checker's verdict on calls, by turn and step, that have run in a session before.

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
        """Send a request to the process and return its answer.

        Args:
            what: the request; its `times`, 1 by default, says as long as how many requests it may take.

        Raises:
            Died: a limit ended the process.
            Killed: something else ended it.
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
        """Return why a process has ended by itself."""
        code = process.wait()
        self.close()
        if code in (-signal.SIGPROF, OUT_OF_MEMORY):
            return Died()
        return Killed(f"the process that runs the functions of BFCL ended with exit code {code}")

    def close(self) -> None:
        """End the process; the next request starts another."""
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
    """The backends of one episode, wherever the process that holds them is.

    Attributes:
        stopped: number of calls that a limit ended.
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
        """Whether the episode has used up its time and memory."""
        return self._broken or self.stopped >= MOST_STOPPED or self.seconds > MOST_SECONDS

    def run(self, call: str) -> str:
        """Run a call that has passed `bfcl.calls` and return its result, or an error if a limit ended it."""
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
        """End the turn and return the verdict on it."""
        counted = bool(self.sample.truth[self._turn])
        self._turn += 1
        if not self._broken:
            try:
                found = self.ask({"do": "end_turn"})
                return Verdict(found["counted"], found["right"], found["why"])
            except Died:
                self._broken = True  # the state takes too long to compare, and would in every later turn
        return Verdict(counted, False, "stopped")

    def close(self) -> None:
        """Forget the backends."""
        if self._asked and self._lives_in == self.harness.ended:
            with contextlib.suppress(Died, Killed):
                self.harness.request({"do": "close", "session": self._name})
        self._asked.clear()

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request in the state that the former requests have made.

        Raises:
            Died: this request or the replay of the former ones reached a limit.
            InputError: the initial state of the sample does not load.
            TrainingError: the process was killed, and again after all requests were replayed.
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
                self._broken = True  # another replay would end the process of all other sessions again
                raise
        return self._request(what)

    def _request(self, what: dict[str, Any]) -> dict[str, Any]:
        answer = self.harness.request({**what, "session": self._name})
        self._lives_in = self.harness.ended
        if "error" in answer:
            raise self.unloaded(answer["error"])
        return answer

    def unloaded(self, why: str) -> InputError:
        """Return the error for a sample whose backends cannot be made."""
        return InputError(
            f"{self.sample.source}: the initial state of {self.sample.id} does not load into "
            f"{', '.join(self.sample.classes)}: {why}"
        )
