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
from shiqrun.errors import InputError

FAILED = "call without an answer"
NO_CALL = "score of a step that is no call of a model"
"""Reasons why a part of a trace is left out."""


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


def add_score(scores: dict[str, float], name: str, value: float, where: str) -> None:
    """Add a score to those of a trace or a call.

    Raises:
        InputError: another value of that name is there.
    """
    if scores.setdefault(name, value) != value:
        raise InputError(f"{where}: score '{name}' is {scores[name]:g} and {value:g}; keep one of them in the log")


def dialogues_of(
    trace: str, calls: list[Call], scores: dict[str, float], results: dict[str, Message], *, place: str, strays: int = 0
) -> Iterator[Dialogue]:
    """Yield the dialogues of a trace: each longest context, with scores of calls at the turns that the calls wrote.

    Args:
        trace: its id.
        calls: in the order of time.
        scores: of the whole trace.
        results: tool messages by the id of their call, for calls that no message answers.
        place: file and row where the trace begins.
        strays: how many scores belong neither to the trace nor to a call.

    Raises:
        InputError: calls that wrote the same turn have different scores.
    """
    answered = [call for call in calls if _is_answered(call)]
    dropped = {FAILED: len(calls) - len(answered), NO_CALL: strays}
    kept: list[Call] = []
    for call in sorted(answered, key=lambda c: -len(c.messages)):
        if not any(_begins(call, longer) for longer in kept):
            kept.append(call)
    if not kept:
        yield Dialogue(trace, [], scores=scores, place=place, dropped=dropped)
    for number, longest in enumerate(kept):
        turns = _turn_scores([call for call in answered if _begins(call, longest)], f"{place}, trace {trace}")
        tools = {json.dumps(tool, sort_keys=True): tool for tool in longest.tools}
        messages = _answered(longest.messages, results)
        name = f"{trace}/{number}" if number else trace
        yield Dialogue(name, messages, [*tools.values()], scores, turns, place, {} if number else dropped)


def _is_answered(call: Call) -> bool:
    """Return whether the model answered: a failed call ends with what it was asked, or with an empty message."""
    last = call.messages[-1] if call.messages else {"role": ""}
    said = any(last.get(key) for key in ("content", "tool_calls", "reasoning_content"))
    return last["role"] == "assistant" and said


def _turn_scores(calls: list[Call], where: str) -> dict[str, dict[int, float]]:
    """Return the scores of calls by name, then by the turn that the call wrote."""
    by_turn: dict[int, dict[str, float]] = {}
    for call in calls:
        turn = sum(m["role"] == "assistant" for m in call.messages) - 1
        for name, value in call.scores.items():
            add_score(by_turn.setdefault(turn, {}), name, value, f"{where}: turn {turn}, which several calls wrote")
    names = {name: None for scores in by_turn.values() for name in scores}
    return {name: {turn: held[name] for turn, held in by_turn.items() if name in held} for name in names}


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
