"""`Dialogue` plays the dialogue of a BFCL sample: messages become calls, results come back, turns are judged.

Logged trajectories (reference answers, corrupted or not) and a policy's own episodes are played alike.
"""

from dataclasses import dataclass
from typing import Literal

from shiqrun.environments.bfcl.calls import Call, Refusal, calls_in
from shiqrun.environments.bfcl.filling import Filler
from shiqrun.environments.bfcl.harness import Harness, Verdict
from shiqrun.environments.bfcl.rendering import Shown, shorten, system_messages
from shiqrun.environments.bfcl.samples import BfclSample
from shiqrun.environments.bfcl.tool_calls import CallFormat, schemas
from shiqrun.types import Message

Rewards = Literal["independent", "official_prefix"]
Arguments = Literal["said", "reference"]


@dataclass(frozen=True)
class Rules:
    """Rules say how episodes of BFCL are played and rewarded.

    Attributes:
        rewards: independent (1 for every right turn), or official_prefix (1 for right turns until a counted one is
            wrong, then 0).
        max_steps: most messages with calls in a turn; one more ends the episode, as in the official runner.
        functions: how the functions are shown to the policy, see `system_messages`.
        result_chars: characters of a result that the policy sees, None for all; the checker sees all.
        arguments: whose arguments calls run with: the policy's ("said") or the reference answer's (see `Filler`).
        calls: how the chat template writes calls; then it shows the functions as tools. None: `[f(a=1)]`, and the
            functions in a system message.
    """

    rewards: Rewards
    max_steps: int
    functions: Shown
    result_chars: int | None
    arguments: Arguments
    calls: CallFormat | None = None

    def message(self, sample: BfclSample, text: str) -> str:
        """Return a message of `[f(a=1)]` as the policy would write it."""
        return text if self.calls is None else self.calls.message(text, sample.documents)


class Dialogue:
    """A dialogue plays a BFCL sample; the policy may `say` a message while the dialogue is not `done`.

    Attributes:
        messages: the dialogue so far.
        prompt: number of messages before the policy's first.
        verdicts: on the turns that have ended.
        refused: calls that were not run, as written.
        ended: why the dialogue was cut off before its end, see `shiqrun.environments.environment`; empty if it was not.
    """

    def __init__(self, sample: BfclSample, harness: Harness, rules: Rules) -> None:
        self.sample, self.rules = sample, rules
        self.messages = opening_messages(sample, rules)
        self.prompt = len(self.messages)
        self.verdicts: list[Verdict] = []
        self.refused: list[str] = []
        self.ended = ""
        self._harness, self._session = harness, harness.open(sample)
        self._calls: list[list[list[str]]] = [[]]  # turn, step, call: what has run
        self._filler = Filler(sample.truth) if rules.arguments == "reference" else None
        self._turn_of: list[int] = []  # of each of the policy's messages
        self._steps = 0

    @property
    def done(self) -> bool:
        """Return whether the dialogue is over."""
        return bool(self.ended) or len(self.verdicts) == len(self.sample.questions)

    @property
    def turn_begun(self) -> bool:
        """Return whether the policy has sent a message in the turn that has not ended."""
        return bool(self._turn_of) and self._turn_of[-1] == len(self.verdicts)

    def say(self, text: str) -> None:
        """Take the policy's next message: run its calls; a message without a call ends the turn."""
        assert not self.done
        self.messages.append({"role": "assistant", "content": text})
        self._turn_of.append(len(self.verdicts))
        self._steps += 1
        form = self.rules.calls
        calls = calls_in(text if form is None else form.read(text), self.sample.documented)
        if calls is None:
            self._end_turn()
            return
        ran: list[str] = []
        for call in calls:
            self.messages.append({"role": "tool", "content": self._answer(call, ran)})
            if self._session.exhausted:
                break
        if ran:
            self._calls[-1].append(ran)
        if self._session.exhausted:
            self.give_up("too much time or memory")
        elif self._steps > self.rules.max_steps:
            self.give_up("too many steps")

    def _answer(self, call: Call | Refusal, ran: list[str]) -> str:
        if isinstance(call, Refusal):
            self.refused.append(call.text)
            return call.answer
        text = self._filler.fill(call.name, len(self.verdicts)) if self._filler else call.text
        stopped = self._session.stopped
        result = self._session.run(text)
        if self._session.stopped == stopped:
            ran.append(text)
        return shorten(result, self.rules.result_chars)

    def _end_turn(self) -> None:
        self.verdicts.append(self._session.end_turn())
        self._steps = 0
        if not self.done:
            self.messages.append(_user(self.sample.questions[len(self.verdicts)]))
            self._calls.append([])

    def give_up(self, why: str) -> None:
        """Cut the dialogue off: the present turn is judged by its calls so far, later turns are wrong."""
        self.ended = why
        self._end_turn()
        while len(self.verdicts) < len(self.sample.questions):
            counted = bool(self.sample.truth[len(self.verdicts)])
            self.verdicts.append(Verdict(counted, False, why))

    @property
    def stopped_calls(self) -> int:
        """Return the number of calls that a limit of time or memory ended."""
        return self._session.stopped

    def close(self) -> None:
        """Release the episode's backends."""
        self._session.close()

    def rewards(self) -> list[float]:
        """Return the reward of every turn, 0 or 1; 0 also for a turn that is not counted."""
        paid, failed = [], False
        for verdict in self.verdicts:
            failed |= verdict.counted and not verdict.right
            right = verdict.right and not (failed and self.rules.rewards == "official_prefix")
            paid.append(float(right))
        return paid

    def counted_turns(self) -> list[bool]:
        """Return which turns count for the reward: those with a reference answer."""
        return [verdict.counted for verdict in self.verdicts]

    def message_rewards(self) -> list[float]:
        """Return the reward of each message of the policy: a turn's reward falls on its last message."""
        paid = self.rewards()
        last = {turn: n for n, turn in enumerate(self._turn_of)}
        return [paid[turn] if last[turn] == n else 0.0 for n, turn in enumerate(self._turn_of)]

    @property
    def right(self) -> bool:
        """Return whether every turn was begun and every counted one is right: what the official checker calls valid."""
        begun = len(self._calls) == len(self.sample.questions)
        return begun and all(v.right for v in self.verdicts if v.counted)

    def official(self) -> bool:
        """Return the official checker's verdict on the calls that have run."""
        begun = len(self._calls) == len(self.sample.questions)
        return begun and self._harness.official(self.sample, self._calls)


def opening_messages(sample: BfclSample, rules: Rules) -> list[Message]:
    """Return the messages before the policy's first: the functions, if they are shown, and the user's first turn.

    Functions as tools lie in the first message under `tools`, as those of any prompt.
    """
    asked = _user(sample.questions[0])
    if rules.calls is not None:
        return [{**asked, "tools": schemas(sample.documents)}]
    return [*system_messages(sample.documents, rules.functions), asked]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
