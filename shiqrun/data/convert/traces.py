"""These functions make dialogues of traces, which log every call of a model with all that it had seen.

The row of a trace is the longest context: a call whose messages begin another call's messages is a part of it. What is
left, a sub-agent or a branch, is a row of its own.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from shiqrun.data.convert.dialogue import Dialogue, PlacedRows, Row
from shiqrun.data.convert.messages import Message


@dataclass(frozen=True)
class Call:
    """A `Call` is one answer of a model: all messages before it and the answer, its tools and its scores."""

    messages: list[Message]
    tools: list[Row] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)


def by_trace(rows: PlacedRows, name: Callable[[Row, str], str]) -> Iterator[tuple[str, list[tuple[str, Row]]]]:
    """Yield each trace with its rows, in the order of their first rows; rows wait on disk, so that memory is flat."""
    with TemporaryDirectory() as folder:
        store = sqlite3.connect(f"{folder}/rows.db")
        try:
            store.execute("create table r (number integer primary key, trace text, place text, row text)")
            made = ((name(row, place), place, json.dumps(row, default=str)) for place, row in rows)
            store.executemany("insert into r (trace, place, row) values (?, ?, ?)", made)
            store.execute("create index t on r (trace)")
            for (trace,) in store.execute("select trace from r group by trace order by min(number)"):
                held = store.execute("select place, row from r where trace = ? order by number", (trace,))
                yield trace, [(place, json.loads(row)) for place, row in held]
        finally:
            store.close()


def time_key(value: Any) -> tuple[bool, int, str]:
    """Return a key that orders times, all given as numbers (or texts of numbers) or all as ISO dates."""
    text = str(value or "")
    return (False, int(text), "") if text.isdigit() else (True, 0, text)


def dialogues_of(
    trace: str, calls: list[Call], scores: dict[str, float], results: dict[str, Message], *, place: str
) -> Iterator[Dialogue]:
    """Yield the dialogues of a trace: each longest context, with scores of calls at the turns that the calls wrote.

    Args:
        trace: its id.
        calls: in the order of time.
        scores: of the whole trace.
        results: tool messages by the id of their call, for calls that no message answers.
        place: file and row where the trace begins.
    """
    kept: list[Call] = []
    for call in sorted(calls, key=lambda c: -len(c.messages)):
        if not any(_begins(call, longer) for longer in kept):
            kept.append(call)
    if not kept:
        yield Dialogue(trace, [], scores=scores, place=place)
    for number, longest in enumerate(kept):
        turns: dict[str, dict[int, float]] = {}
        for call in calls:
            if _begins(call, longest):
                turn = sum(m["role"] == "assistant" for m in call.messages) - 1
                for name, value in call.scores.items():
                    turns.setdefault(name, {})[turn] = value
        tools = {json.dumps(tool, sort_keys=True): tool for tool in longest.tools}
        messages = _answered(longest.messages, results)
        yield Dialogue(f"{trace}/{number}" if number else trace, messages, [*tools.values()], scores, turns, place)


def _begins(call: Call, longer: Call) -> bool:
    """Return whether the messages of a call begin those of another, which a history shows by texts and tool calls."""
    mine, other = call.messages, longer.messages
    return len(mine) <= len(other) and all(_key(a) == _key(b) for a, b in zip(mine, other, strict=False))


def _key(message: Message) -> tuple[str, str, str]:
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return message["role"], message["content"], json.dumps(calls, sort_keys=True)


def _answered(messages: list[Message], results: dict[str, Message]) -> list[Message]:
    """Return the messages with results of tool spans behind tool calls that no message answers."""
    answered = {m.get("tool_call_id") for m in messages}
    made: list[Message] = []
    for message in messages:
        made.append(message)
        ids = [call.get("id") for call in message.get("tool_calls", [])]
        made += [results[i] for i in ids if i in results and i not in answered]
    return made
