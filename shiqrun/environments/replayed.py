"""`ReplayedSession` keeps the state of one episode in a confined process, and restores it in another by replay.

The request that a limit ends takes the confined process with it, and so the state of every other episode there. What
runs in it is deterministic: the former requests of an episode make the same state again.
"""

import contextlib
import uuid
from typing import Any

from shiqrun.environments.confined import ConfinedProcess, LimitReached, ProcessKilled

REPLAY = 10
"""How many times as long a replayed request may take: a request that has passed once must pass again."""


class ReplayedSession:
    """A replayed session sends the requests of one episode, under a name of its own, to a confined process.

    Args:
        process: the confined process, which several sessions share.

    Attributes:
        broken: whether the former requests reached a limit when they were replayed; then the state is lost for good.
    """

    def __init__(self, process: ConfinedProcess) -> None:
        self.process = process
        self.broken = False
        self._name = uuid.uuid4().hex
        self._asked: list[dict[str, Any]] = []
        self._lives_in = 0

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request of the episode, in the state that its former requests have made.

        Raises:
            LimitReached: this request or the replay of the former ones reached a limit.
            ProcessKilled: the process was killed, and again after all requests were replayed.
        """
        try:
            answer = self._after_former(what)
        except ProcessKilled:
            answer = self._after_former(what)
        self._asked.append(what)
        return answer

    def checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the confined process; a session whose answers may be errors raises them here."""
        return answer

    def close(self) -> None:
        """Let the confined process forget the state of the episode."""
        if self._asked and self._lives_in == self.process.ended:
            with contextlib.suppress(LimitReached, ProcessKilled):
                self.process.request({"do": "close", "session": self._name})
        self._asked.clear()

    def _after_former(self, what: dict[str, Any]) -> dict[str, Any]:
        if self._lives_in != self.process.ended:
            try:
                for former in self._asked:
                    self._request({**former, "times": REPLAY})
            except LimitReached:
                self.broken = True  # another replay would end the process of all other sessions again
                raise
        return self._request(what)

    def _request(self, what: dict[str, Any]) -> dict[str, Any]:
        answer = self.process.request({**what, "session": self._name})
        self._lives_in = self.process.ended
        return self.checked(answer)
