"""The harness runs BFCL's backends in a confined process, which a limit may end and which is then replaced.

A request that needs more processor time or memory than allowed ends the process. Backends are deterministic, so the
harness restores the sessions of a dead process by replaying their requests, without the one that ended it.
"""

from dataclasses import dataclass
from typing import Any

from shiqrun.environments.bfcl.samples import BfclSample
from shiqrun.environments.confined import ConfinedProcess, LimitReached, ProcessKilled
from shiqrun.environments.environment import EpisodeFailed
from shiqrun.environments.replayed import ReplayedSession
from shiqrun.errors import InputError, TrainingError

WORKER = "shiqrun.environments.bfcl.worker"
CPU_SECONDS = 2.0
"""Most processor time of one request; unlike wall time, it does not depend on how busy the machine is."""
MOST_STOPPED, MOST_SECONDS = 3, 20.0
"""Number of stopped calls, and processor time of all calls, at which an episode's session is exhausted."""
STOPPED = "Error during execution: the call was stopped: it took too much time or memory"


@dataclass(frozen=True)
class Verdict:
    """A verdict says of a turn whether it counts (has a reference answer), whether it is right, and why not."""

    counted: bool
    right: bool
    why: str


class Harness(ConfinedProcess):
    """The harness opens sessions in the confined process of BFCL's backends; as a context manager it ends the process.

    Args:
        cpu_seconds: most processor time of a request.
    """

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        super().__init__(WORKER, "the process that runs the functions of BFCL", cpu_seconds)

    def __enter__(self) -> "Harness":
        return self

    def open(self, sample: BfclSample) -> "RemoteSession":
        """Open a session with new backends of a BFCL sample.

        Raises:
            InputError: the initial state of the sample does not load.
        """
        session = RemoteSession(self, sample)
        try:
            session.ask({"do": "open", "sample": sample.row})
        except LimitReached:
            raise session.load_error("it takes too much time or memory") from None
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
        except LimitReached:
            return False
        except ProcessKilled as killed:
            raise TrainingError(f"{killed}, at {sample.id}; is the machine out of memory?") from None


class RemoteSession(ReplayedSession):
    """A remote session calls the backends of one episode, which the confined process holds.

    Args:
        harness: the confined process.
        sample: whose backends they are.

    Attributes:
        stopped: number of calls that a limit ended.
        seconds: processor time that calls have taken.
    """

    def __init__(self, harness: Harness, sample: BfclSample) -> None:
        super().__init__(harness)
        self.sample = sample
        self.stopped, self.seconds = 0, 0.0
        self._turn = 0

    @property
    def exhausted(self) -> bool:
        """Return whether the episode has used up its time and memory."""
        return self.broken or self.stopped >= MOST_STOPPED or self.seconds > MOST_SECONDS

    def run(self, call: str) -> str:
        """Run a function call that has passed `bfcl.calls` and return its result, or an error if a limit ended it."""
        if not self.broken:
            try:
                answer = self.ask({"do": "run", "call": call})
                self.seconds += answer["seconds"]
                return str(answer["result"])
            except LimitReached:
                self.seconds += self.process.cpu_seconds
        self.stopped += 1
        return STOPPED

    def end_turn(self) -> Verdict:
        """End the policy's turn and return the verdict on it."""
        counted = bool(self.sample.truth[self._turn])
        self._turn += 1
        if not self.broken:
            try:
                found = self.ask({"do": "end_turn"})
                return Verdict(found["counted"], found["right"], found["why"])
            except LimitReached:
                self.broken = True  # the state takes too long to compare, and would in every later turn
        return Verdict(counted, False, "stopped")

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """Return the backends' answer to a request, in the state that the former requests have made.

        Raises:
            LimitReached: this request or the replay of the former ones reached a limit.
            InputError: the initial state of the sample does not load.
            EpisodeFailed: the process was killed, and again after all requests were replayed.
        """
        try:
            return super().ask(what)
        except ProcessKilled as twice:
            raise EpisodeFailed(f"{twice}, twice, at {self.sample.id}; is the machine out of memory?") from None

    def checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the backends, unless it says that they could not be made."""
        if "error" in answer:
            raise self.load_error(answer["error"])
        return answer

    def load_error(self, why: str) -> InputError:
        """Return the error for a sample whose backends cannot be made."""
        return InputError(
            f"{self.sample.source}: the initial state of {self.sample.id} does not load into "
            f"{', '.join(self.sample.classes)}: {why}"
        )
