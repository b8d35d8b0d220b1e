"""This converter reads OpenTelemetry spans with GenAI attributes, as JSON lines of spans or as OTLP's JSON export.

The published schemas:

* OTLP/JSON: opentelemetry.io/docs/specs/otlp, and `AnyValue` in common.proto of open-telemetry/opentelemetry-proto.
* Messages, tool definitions, evaluations: open-telemetry/semantic-conventions-genai, model/gen-ai (spans.yaml,
  events.yaml, gen-ai-input-messages.json, gen-ai-tool-definitions.json). Events are log records there.
* Events for each message: model/gen-ai/deprecated/events-deprecated.yaml of open-telemetry/semantic-conventions.
* `gen_ai.prompt.N.*`, `gen_ai.completion.N.*`, `llm.request.functions.N.*`: traceloop/openllmetry.
* Spans with `context`, `parent_id`: `ReadableSpan.to_json` of opentelemetry-sdk (Python).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shiqrun.data.convert.dialogue import Dialogue, PlacedRows, Row, as_written, score_of
from shiqrun.data.convert.messages import Message, brief, json_value, normal_message, normal_tools
from shiqrun.data.convert.parts import messages_of_parts, tool_result
from shiqrun.data.convert.traces import Call, add_score, by_trace, dialogues_of, time_key
from shiqrun.errors import InputError

INDEXED = re.compile(r"gen_ai\.(prompt|completion)\.(\d+)\.(.+)")
FUNCTION = re.compile(r"llm\.request\.functions\.(\d+)\.(name|description|parameters)")
OLDER_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message|gen_ai\.choice")
DETAILS = "gen_ai.client.inference.operation.details"
EVALUATION = "gen_ai.evaluation."
NO_SPAN = "row "
"""The beginning of names of records that name no span."""


@dataclass
class Span:
    """A `Span` is one operation of a trace, with the log records that belong to it.

    Attributes:
        place: file and row.
        parent: id of the span around it.
        facts: its attributes.
        events: name and attributes of each, in order.
        logged: whether the span itself is there, not only its records.
    """

    place: str
    parent: str = ""
    facts: Row = field(default_factory=dict)
    events: list[tuple[str, Row]] = field(default_factory=list)
    logged: bool = False


def read_otel(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield the dialogues of each trace; `execute_tool` spans become tool messages, evaluations scores."""
    for trace, placed in by_trace(_records(rows), lambda record, place: str(_need_trace(record, place))):
        placed.sort(key=lambda one: time_key(one[1].get("startTimeUnixNano") or one[1].get("start_time")))
        spans = _spans(placed)
        results: dict[str, Message] = {}
        calls: dict[str, Call] = {}
        answered: dict[str, str] = {}
        for name, span in spans.items():
            with as_written("otel", span.place):
                facts = span.facts | {k: v for event, more in span.events if event == DETAILS for k, v in more.items()}
                if facts.get("gen_ai.operation.name") == "execute_tool":
                    call, said = facts.get("gen_ai.tool.call.id"), facts.get("gen_ai.tool.call.result")
                    if call and said is not None:
                        results[str(call)] = tool_result(call, said)
                elif messages := _messages(facts, span.events, span.place):
                    calls[name] = Call(messages, _tools(facts, span.place))
                    answered[str(facts.get("gen_ai.response.id") or name)] = name
        scores, strays = _add_scores(trace, spans, calls, answered)
        yield from dialogues_of(trace, [*calls.values()], scores, results, place=placed[0][0], strays=strays)


def _records(rows: PlacedRows) -> Iterator[tuple[str, Row]]:
    """Yield spans and log records, each as a row of its own."""
    for place, row in rows:
        if not {"resourceSpans", "resourceLogs"} & row.keys():
            yield place, row
            continue
        for outer, middle, inner in (
            ("resourceSpans", "scopeSpans", "spans"),
            ("resourceLogs", "scopeLogs", "logRecords"),
        ):
            for resource in row.get(outer) or []:
                for scope in resource.get(middle) or []:
                    yield from ((place, record) for record in scope.get(inner) or [])


def _need_trace(span: Row, place: str) -> Any:
    context = span.get("context") or {}
    found = span.get("traceId") or span.get("trace_id") or context.get("trace_id")
    if not found:
        raise InputError(f"{place}: the span has no traceId; export spans with their trace's id")
    return found


def _spans(placed: Sequence[tuple[str, Row]]) -> dict[str, Span]:
    """Return the spans of a trace by id; a log record is an event of the span that it names."""
    found: dict[str, Span] = {}
    for number, (place, row) in enumerate(placed):
        with as_written("otel", place):
            context = row.get("context") or {}
            name = str(row.get("spanId") or row.get("span_id") or context.get("span_id") or f"{NO_SPAN}{number}")
            span = found.setdefault(name, Span(place))
            if _is_log(row):
                span.events.append(_event(row))
                continue
            span.place, span.facts, span.logged = place, _attributes(row), True
            span.parent = str(row.get("parentSpanId") or row.get("parent_span_id") or row.get("parent_id") or "")
            span.events += [_event(event) for event in row.get("events") or []]
    return found


def _is_log(row: Row) -> bool:
    return bool({"eventName", "event_name", "severityNumber", "severity_number", "body"} & row.keys())


def _event(row: Row) -> tuple[str, Row]:
    """Return name and facts of an event: its attributes, and the fields of its body where it has some."""
    facts, body = _attributes(row), row.get("body")
    held = _value(body) if isinstance(body, dict) else body
    name = row.get("eventName") or row.get("event_name") or row.get("name") or facts.get("event.name")
    return str(name or ""), facts | (held if isinstance(held, dict) else {})


def _attributes(row: Row) -> Row:
    """Return attributes as a plain mapping; OTLP writes them as a list of keys and typed values."""
    held = row.get("attributes") or {}
    return {a["key"]: _value(a.get("value")) for a in held} if isinstance(held, list) else held


def _value(value: Any) -> Any:
    """Return the plain value of OTLP's `AnyValue`; one without a value is null, and a 64-bit integer may be a text."""
    if not isinstance(value, dict) or len(value) > 1:
        return value
    if not value:
        return None
    kind, held = next(iter(value.items()))
    if kind == "intValue":
        return int(held)
    if kind == "arrayValue":
        return [_value(item) for item in held.get("values", [])]
    if kind == "kvlistValue":
        return {item["key"]: _value(item.get("value")) for item in held.get("values", [])}
    return held


def _add_scores(
    trace: str, spans: dict[str, Span], calls: dict[str, Call], answered: dict[str, str]
) -> tuple[dict[str, float], int]:
    """Add evaluations of calls to the calls; return those of the trace, and how many judge other spans.

    An evaluation is an event of the judged span, a span of its own beneath it, or names the judged response. One of the
    outermost span, or of no span, is the trace's.
    """
    scores: dict[str, float] = {}
    strays = 0
    judged = [(name, facts, span.place) for name, span in spans.items() for _, facts in span.events]
    judged += [(span.parent, span.facts, span.place) for span in spans.values()]
    for name, facts, place in judged:
        value = facts.get(f"{EVALUATION}score.value")
        if value is None:
            continue
        call = calls.get(name) or calls.get(answered.get(str(facts.get("gen_ai.response.id") or ""), ""))
        if call is None and not _is_whole(name, spans):
            strays += 1
            continue
        into, where = (scores, "") if call is None else (call.scores, f": the call of span {name}")
        add_score(into, str(facts.get(f"{EVALUATION}name")), score_of(value, place), f"{place}, trace {trace}{where}")
    return scores, strays


def _is_whole(name: str, spans: dict[str, Span]) -> bool:
    """Return whether what judges this span judges the trace: it is the outermost one, or no span is named."""
    if not name or name.startswith(NO_SPAN):
        return True
    span = spans.get(name)
    outermost = span is not None and span.logged and span.parent not in spans
    return outermost and spans[name].facts.get("gen_ai.operation.name") != "execute_tool"


def _tools(facts: Row, place: str) -> list[Row]:
    given = facts.get("gen_ai.tool.definitions")
    if given is None:
        found: dict[int, Row] = {}
        for key, value in facts.items():
            if match := FUNCTION.fullmatch(key):
                schema = _decoded(value, place) if match[2] == "parameters" else value
                found.setdefault(int(match[1]), {})[match[2]] = schema
        given = [found[number] for number in sorted(found)]
    return normal_tools(given, f"{place}: gen_ai.tool.definitions")


def _messages(facts: Row, events: Sequence[tuple[str, Row]], place: str) -> list[Message]:
    """Return what the model read and wrote in a span; nothing where the span is no call of a model."""
    made: list[Message] = []
    instructions = _decoded(facts.get("gen_ai.system_instructions"), place)
    if instructions:
        made += messages_of_parts({"role": "system", "parts": instructions}, place)
    for key in ("gen_ai.input.messages", "gen_ai.output.messages"):
        said = _decoded(facts.get(key), f"{place}: {key}") or []
        for message in said[:1] if key == "gen_ai.output.messages" else said:  # further ones are other choices
            if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
                raise InputError(f"{place}: {key}: expected a message with role and parts, found {brief(message)}")
            made += messages_of_parts(message, f"{place}: {key}")
    return made or _indexed(facts, place) or _from_events(events, place)


def _decoded(value: Any, place: str) -> Any:
    return json_value(value, f"{place}:", "was the attribute cut at a length limit?")


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


def _from_events(events: Sequence[tuple[str, Row]], place: str) -> list[Message]:
    """Return messages of the older events `gen_ai.user.message`, ..., `gen_ai.choice`."""
    made = []
    for name, facts in events:
        match = OLDER_EVENT.fullmatch(name)
        if not match or facts.get("index"):  # a further choice
            continue
        body = facts | (_decoded(facts.get("message"), place) or {})  # a choice has calls in its message or beside it
        plain = {**body, "role": match[1] or "assistant", "tool_calls": _decoded(body.get("tool_calls"), place)}
        made.append(normal_message(plain | ({"tool_call_id": body["id"]} if body.get("id") else {}), place))
    return made
