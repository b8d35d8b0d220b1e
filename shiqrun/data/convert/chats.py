"""These converters read logs of whole chats: OpenAI, ShareGPT, agent trajectories, and steps with labels.

The published schemas:

* OpenHands: columns of huggingface.co/datasets/nebius/SWE-rebench-openhands-trajectories (`trajectory_id`,
  `instance_id`, `trajectory`, `tools`, `resolved` as 0 or 1, ...); arguments of calls are JSON texts, and since the
  file is Parquet, schemas of tools hold nulls for keys that others have.
* SWE-agent: columns of huggingface.co/datasets/nebius/SWE-agent-trajectories (`instance_id`, `trajectory` of `role`,
  `text`, `system_prompt`, `mask`, `cutoff_date`; `target`, ...); `mask`, which its card does not explain, is not read.
* Steps with labels: TRL's type "stepwise supervision" (docs/source/dataset_formats.md of huggingface/trl).
"""

from collections.abc import Iterator
from typing import Any

from shiqrun.data.convert.dialogue import Dialogue, PlacedRows, Row, score_of
from shiqrun.data.convert.messages import (
    MARKS,
    Message,
    brief,
    json_value,
    normal_call,
    normal_message,
    normal_messages,
    normal_tools,
)
from shiqrun.errors import InputError

SCORES = ("reward", "score", "label", "resolved", "target")
"""The columns of a chat that are read as scores."""


def scores_in(row: Row, place: str) -> dict[str, float]:
    """Return the scores that a row's columns hold, by column; null counts as missing."""
    found = {c: score_of(row[c], f"{place}: column '{c}'") for c in SCORES if row.get(c) is not None}
    extra = row.get("scores")
    return found | {c: score_of(v, f"{place}: score '{c}'") for c, v in extra.items()} if extra else found


def read_openai(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield a dialogue for each row: `messages` [, `tools`], or `request` and `response` of a chat completion."""
    for place, row in rows:
        request = row.get("request") or row
        if isinstance(request.get("body"), dict):  # the Batch API wraps both
            request = request["body"]
        messages = normal_messages(request.get("messages"), f"{place}: messages")
        response = row.get("response")
        if isinstance(response, dict):
            response = response.get("body") or response
            choices = response.get("choices") or []
            messages += [normal_message(choice.get("message"), f"{place}: response") for choice in choices[:1]]
        tools = request.get("tools") or request.get("functions")
        yield Dialogue(place, messages, normal_tools(tools, f"{place}: tools"), scores_in(row, place))


def read_sharegpt(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield a dialogue for each row of `conversations` with `from` and `value` [, `system`, `tools`, a score]."""
    for place, row in rows:
        turns = row["conversations"]
        if not isinstance(turns, list):
            raise InputError(f"{place}: conversations must be a list, found {brief(turns)}; name the right column")
        messages: list[Message] = []
        if row.get("system"):
            messages.append(normal_message({"role": "system", "content": row["system"]}, f"{place}: system"))
        for number, turn in enumerate(turns):
            _add_turn(messages, turn, f"{place}: conversations, message {number}")
        yield Dialogue(place, messages, normal_tools(row.get("tools"), f"{place}: tools"), scores_in(row, place))


def _add_turn(messages: list[Message], turn: Any, place: str) -> None:
    """Append a turn; a `function_call` becomes a tool call, and further ones behind it calls of the same message."""
    if not isinstance(turn, dict):
        raise InputError(f"{place}: expected an object with from and value, found {brief(turn)}")
    if turn.get("from") != "function_call":
        message = {**turn, "role": turn.get("from"), "content": turn.get("value")}
        messages.append(normal_message(message, place))
        return
    value = json_value(turn.get("value"), f"{place}: the tool call is", "mend it or drop the row")
    calls = [normal_call(call, place) for call in (value if isinstance(value, list) else [value])]
    marks = {key: turn[key] for key in MARKS if turn.get(key) is not None}
    if not messages or not messages[-1].get("tool_calls"):
        messages.append({"role": "assistant", "content": "", "tool_calls": calls, **marks})
        return
    if any(messages[-1].get(key) != marks.get(key) for key in MARKS):
        raise InputError(f"{place}: function calls of one message have different {' or '.join(MARKS)}; mark them alike")
    messages[-1]["tool_calls"] += calls


def read_trajectories(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield a dialogue for each `trajectory`, of chat messages (OpenHands) or of `role, text` (SWE-agent)."""
    for place, row in rows:
        steps = row["trajectory"]
        if not isinstance(steps, list):
            raise InputError(f"{place}: trajectory must be a list, found {brief(steps)}; name the right column")
        plain = [_as_chat(step) for step in steps]
        messages = normal_messages(plain, f"{place}: trajectory")
        name = str(row.get("trajectory_id") or row.get("instance_id") or place)
        yield Dialogue(name, messages, normal_tools(row.get("tools"), f"{place}: tools"), scores_in(row, place))


def _as_chat(step: Any) -> Any:
    """Return a SWE-agent's step as a chat message; its system prompt may stand in a column of its own."""
    if not isinstance(step, dict) or "content" in step:
        return step
    return {**step, "content": step.get("text") or step.get("system_prompt")}


def read_steps(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield a dialogue for each `prompt, completions, labels`: a step is an assistant turn, its label a reward."""
    for place, row in rows:
        prompt, steps, labels = row["prompt"], row["completions"], row["labels"]
        if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels):
            raise InputError(f"{place}: completions and labels must be lists of equal length; mend or drop the row")
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        chat = [*chat, *({"role": "assistant", "content": step} for step in steps)]
        scores = {turn: score_of(label, f"{place}: label {turn}") for turn, label in enumerate(labels)}
        yield Dialogue(place, normal_messages(chat, place), turn_scores={"labels": scores})
