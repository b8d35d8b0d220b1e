"""This converter reads OpenTelemetry spans with GenAI attributes, as JSON lines of spans or as OTLP's JSON export."""

import json
import re
from collections.abc import Iterator
from typing import Any

from shiqrun.data.convert.dialogue import Dialogue, PlacedRows, Row, score_of
from shiqrun.data.convert.messages import Message, brief, normal_message, normal_tools
from shiqrun.data.convert.traces import Call, by_trace, dialogues_of
from shiqrun.errors import InputError

INDEXED = re.compile(r"gen_ai\.(prompt|completion)\.(\d+)\.(.+)")
EVALUATION = "gen_ai.evaluation."


def read_otel(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield the dialogues of each trace; `execute_tool` spans become tool messages, evaluations scores."""
    for trace, spans in by_trace(_spans(rows), lambda span, place: str(_need_trace(span, place))):
        spans.sort(key=lambda placed: str(placed[1].get("startTimeUnixNano") or placed[1].get("start_time") or ""))
        calls: dict[str, Call] = {}
        scores: dict[str, float] = {}
        results: dict[str, Message] = {}
        events: list[tuple[str, Row, str]] = []
        for place, span in spans:
            holder = str(span.get("spanId") or span.get("span_id"))
            facts = _attributes(span)
            if facts.get("gen_ai.operation.name") == "execute_tool":
                _add_result(results, facts)
            elif messages := _messages(facts, span, place):
                tools = normal_tools(facts.get("gen_ai.tool.definitions"), f"{place}: gen_ai.tool.definitions")
                calls[holder] = Call(messages, tools)
            events += [(holder, _attributes(event), place) for event in span.get("events") or []]
            if f"{EVALUATION}name" in facts:  # a span of its own names the judged span by its parent
                events.append((str(span.get("parentSpanId") or span.get("parent_span_id")), facts, place))
        for holder, facts, place in events:
            value = facts.get(f"{EVALUATION}score.value")
            if value is not None:
                into = calls[holder].scores if holder in calls else scores
                into[str(facts.get(f"{EVALUATION}name"))] = score_of(value, place)
        yield from dialogues_of(trace, [*calls.values()], scores, results)


def _spans(rows: PlacedRows) -> Iterator[tuple[str, Row]]:
    for place, row in rows:
        if "resourceSpans" not in row:
            yield place, row
            continue
        for resource in row["resourceSpans"]:
            for scope in resource.get("scopeSpans", []):
                yield from ((place, span) for span in scope.get("spans", []))


def _need_trace(span: Row, place: str) -> Any:
    context = span.get("context") or {}
    found = span.get("traceId") or span.get("trace_id") or context.get("trace_id")
    if not found:
        raise InputError(f"{place}: the span has no traceId; export spans with their trace's id")
    return found


def _attributes(span: Row) -> Row:
    """Return attributes as a plain mapping; OTLP writes them as a list of keys and typed values."""
    held = span.get("attributes") or {}
    return {a["key"]: _value(a.get("value")) for a in held} if isinstance(held, list) else held


def _value(value: Any) -> Any:
    """Return the plain value of OTLP's `AnyValue`."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    kind, held = next(iter(value.items()))
    if kind == "intValue":
        return int(held)
    if kind == "arrayValue":
        return [_value(item) for item in held.get("values", [])]
    if kind == "kvlistValue":
        return {item["key"]: _value(item.get("value")) for item in held.get("values", [])}
    return held


def _messages(facts: Row, span: Row, place: str) -> list[Message]:
    """Return what the model read and wrote in a span; nothing where the span is no call of a model."""
    made: list[Message] = []
    instructions = _decoded(facts.get("gen_ai.system_instructions"), place)
    if instructions:
        made += _from_parts({"role": "system", "parts": instructions}, place)
    for key in ("gen_ai.input.messages", "gen_ai.output.messages"):
        said = _decoded(facts.get(key), f"{place}: {key}") or []
        for message in said[:1] if key == "gen_ai.output.messages" else said:  # further ones are other choices
            made += _from_parts(message, f"{place}: {key}")
    return made or _indexed(facts, place) or _from_events(span, place)


def _decoded(value: Any, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise InputError(f"{place}: no JSON: {brief(value)}; was the attribute cut at a length limit?") from None


def _from_parts(message: Row, place: str) -> Iterator[Message]:
    """Yield a message of `parts`; each tool response in it is a tool message of its own."""
    if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
        raise InputError(f"{place}: expected a message with role and parts, found {brief(message)}")
    parts = message["parts"]
    answers = [part for part in parts if part.get("type") == "tool_call_response"]
    for part in answers:
        said = part.get("response", part.get("result"))
        yield _result(part.get("id"), said)
    rest = [part for part in parts if part.get("type") not in ("tool_call_response", "tool_call", "reasoning")]
    calls = [part for part in parts if part.get("type") == "tool_call"]
    thought = "".join(str(part.get("content")) for part in parts if part.get("type") == "reasoning")
    if rest or calls or thought or not answers:
        content = [{"type": p.get("type"), "text": p.get("content")} for p in rest]
        calls = [{key: call.get(key) for key in ("id", "name", "arguments")} for call in calls]
        plain = {"role": message.get("role"), "content": content, "tool_calls": calls}
        yield normal_message(plain | {"reasoning_content": thought or None}, place)


def _result(name: Any, said: Any) -> Message:
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return {"role": "tool", "content": text} | ({"tool_call_id": name} if name else {})


def _add_result(results: dict[str, Message], facts: Row) -> None:
    name, said = facts.get("gen_ai.tool.call.id"), facts.get("gen_ai.tool.call.result")
    if name and said is not None:
        results[str(name)] = _result(name, said)


def _indexed(facts: Row, place: str) -> list[Message]:
    """Return messages of the older attributes `gen_ai.prompt.N.role` and `gen_ai.completion.N.content`."""
    found: dict[tuple[bool, int], Row] = {}
    for key, value in facts.items():
        if match := INDEXED.fullmatch(key):
            found.setdefault((match[1] == "completion", int(match[2])), {})[match[3]] = value
    made = []
    for (answer, number), fields in sorted(found.items(), key=lambda item: item[0]):
        if answer and number:
            continue
        calls: dict[str, Row] = {}
        for key, value in fields.items():
            if match := re.fullmatch(r"tool_calls\.(\d+)\.(id|name|arguments)", key):
                calls.setdefault(match[1], {})[match[2]] = value
        plain = {"role": "assistant" if answer else "user", **fields, "tool_calls": [*calls.values()]}
        made.append(normal_message(plain, place))
    return made


def _from_events(span: Row, place: str) -> list[Message]:
    """Return messages of the older span events `gen_ai.user.message`, ..., `gen_ai.choice`."""
    made = []
    for event in span.get("events") or []:
        match = re.fullmatch(r"gen_ai\.(system|user|assistant|tool)\.message|gen_ai\.choice", event.get("name", ""))
        if match:
            facts = _attributes(event)
            body = _decoded(facts.get("message"), place) or facts
            plain = {**body, "role": match[1] or "assistant", "tool_calls": _decoded(body.get("tool_calls"), place)}
            made.append(normal_message(plain | ({"tool_call_id": body["id"]} if body.get("id") else {}), place))
    return made
