"""Logged BFCL dialogues of a file are replayed against the backends, which judge them anew."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from shiqrun.data.chats import calls_of
from shiqrun.environments.bfcl.dialogue import Dialogue, Rules
from shiqrun.environments.bfcl.harness import Harness
from shiqrun.environments.bfcl.samples import BfclSample
from shiqrun.errors import InputError
from shiqrun.types import Message

OTHER_REWARDS = "rewards of the file differ from those of the checker under data.rewards, which are used"
OTHER_STATES = (
    "functions or results are shown otherwise than data.functions, data.result_chars and data.arguments have it: the "
    "policy will be evaluated in other states than it is trained in"
)


def differences(row: dict[str, Any], messages: Sequence[Message], episode: Dialogue, place: str) -> Iterator[str]:
    """Yield a warning for each way in which a logged dialogue differs from the same dialogue replayed here.

    Raises:
        InputError: `rewards` are not one finite number for each assistant message.
    """
    rewards = row.get("rewards")
    spoken = sum(m["role"] == "assistant" for m in messages)
    if rewards is not None:
        if not isinstance(rewards, list) or not all(isinstance(r, int | float) and math.isfinite(r) for r in rewards):
            raise InputError(f"{place}: rewards must be a list of {spoken} finite numbers, one an assistant message")
        if len(rewards) != spoken:
            raise InputError(f"{place}: {len(rewards)} rewards for {spoken} assistant messages")
        if rewards != episode.message_rewards():
            yield OTHER_REWARDS
    shown = [m["content"] for m in messages if m["role"] in ("system", "tool")]
    here = [m["content"] for m in episode.messages if m["role"] in ("system", "tool")]
    if shown != here[: len(shown)]:
        yield OTHER_STATES


def replay(sample: BfclSample, messages: Sequence[Message], place: str, harness: Harness, rules: Rules) -> Dialogue:
    """Replay a logged dialogue against the backends; return the episode in which the policy says what was logged.

    A dialogue that stops early, be it in the middle of a call, is judged like an episode that is truncated there: the
    unfinished turn by its calls so far, later turns as wrong.

    Raises:
        InputError: the user says something else than in the sample, or at another place; or the arguments of a tool
            call are no object.
    """
    episode = Dialogue(sample, harness, rules)
    start = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    if start == 0 or messages[start - 1]["content"] != sample.questions[0]:
        raise InputError(f"{place}, message {max(start - 1, 0)}: not what the user of {sample.id} says first")
    awaited: Message | None = None  # the user's next message, once a turn has ended
    for n, message in enumerate(messages[start:], start):
        here = f"{place}, message {n}"
        if message["role"] == "assistant":
            if episode.done:
                raise InputError(f"{here}: {sample.id} is over before it ({episode.ended or 'all turns'})")
            if awaited:
                raise InputError(f"{here}: the user of {sample.id} says something before it: {awaited['content']!r}")
            text = message_text(message, here)
            episode.say(rules.message(sample, text) if message.get("tool_calls") else text)
            awaited = episode.messages[-1] if episode.messages[-1]["role"] == "user" else None
        elif message["role"] == "user":
            if awaited is None or awaited["content"] != message["content"]:
                expected = "other words are expected" if awaited else "no turn has ended"
                raise InputError(f"{here}: not what the user of {sample.id} says here: {expected}")
            awaited = None
    if not episode.done:
        episode.give_up("the dialogue ends here")
    episode.close()
    return episode


def message_text(message: Message, place: str) -> str:
    """Return an assistant message as the policy would write it: its tool calls as `[f(a=1)]`, else its content.

    Raises:
        InputError: the arguments of a tool call are neither an object nor the JSON of one.
    """
    calls = []
    for name, given in calls_of(message):
        try:
            arguments = json.loads(given) if isinstance(given, str) else given or {}
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise InputError(f"{place}: the arguments of {name} are {str(given)[:60]!r}; expected a JSON object")
        calls.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
    return f"[{', '.join(calls)}]" if calls else str(message["content"])
