"""These converters read traces as Langfuse and LangSmith export them.

The published schemas:

* Langfuse: `TraceWithFullDetails` of the public API (langfuse/langfuse, fern/apis/server/definition), which a trace's
  "Download JSON" holds too, and the files `observations/`, `observations_v2/` and `scores/` of its blob storage export
  (langfuse/langfuse-docs, blob-storage-export-fields.mdx), whose payloads are texts.
* LangSmith: docs.langchain.com/langsmith/run-data-format; messages as docs.langchain.com/langsmith/log-llm-trace says,
  in the form of LangChain, OpenAI or Anthropic.
"""

from collections.abc import Iterator
from typing import Any

from shiqrun.data.convert.dialogue import Dialogue, PlacedRows, Row, as_written, score_of
from shiqrun.data.convert.messages import ROLE_OF, Message, brief, json_value, normal_message, normal_tools
from shiqrun.data.convert.parts import messages_of_parts
from shiqrun.data.convert.traces import Call, add_score, by_trace, dialogues_of, time_key
from shiqrun.errors import InputError

LANGCHAIN = {"HumanMessage": "user", "AIMessage": "assistant", "SystemMessage": "system", "ToolMessage": "tool"}
NO_NUMBERS = ("CATEGORICAL", "TEXT", "CORRECTION")
"""Types of Langfuse's scores whose `value` is the number of a category, or means nothing."""


def read_langfuse(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield the dialogues of each trace with `observations` and `scores`; a generation is a call of the model."""
    for trace, placed in by_trace(_langfuse_rows(rows), lambda row, place: str(_either(row, "traceId") or place)):
        observations = [(place, row) for place, row in placed if "value" not in row]
        observations.sort(key=lambda one: time_key(_either(one[1], "startTime")))
        calls: dict[str, Call] = {}
        for place, seen in observations:
            if seen.get("type") == "GENERATION":
                where = f"{place}: observation {seen.get('id')}"
                with as_written("langfuse", where):
                    inputs, output = (_payload(seen.get(key)) for key in ("input", "output"))
                    calls[str(seen.get("id"))] = _call(inputs, output, where, _defined(seen, where))
        scores, strays = _langfuse_scores(trace, placed, calls)
        yield from dialogues_of(trace, [*calls.values()], scores, {}, place=placed[0][0], strays=strays)


def _langfuse_scores(trace: str, placed: list[tuple[str, Row]], calls: dict[str, Call]) -> tuple[dict[str, float], int]:
    """Add scores of calls to the calls; return those of the trace, and how many judge other observations."""
    scores: dict[str, float] = {}
    strays = 0
    for place, score in placed:
        value, judged = score.get("value"), _either(score, "observationId")
        if not isinstance(value, bool | int | float) or _either(score, "dataType") in NO_NUMBERS:
            continue
        if judged and str(judged) not in calls:
            strays += 1
            continue
        into, where = scores, f"{place}, trace {trace}"
        if judged:
            into, where = calls[str(judged)].scores, f"{where}: observation {judged}"
        add_score(into, str(score.get("name")), score_of(value, place), where)
    return scores, strays


def _langfuse_rows(rows: PlacedRows) -> Iterator[tuple[str, Row]]:
    """Yield observations and scores, each as a row that names its trace."""
    for place, row in rows:
        if "observations" not in row:
            yield place, row
            continue
        trace = row.get("trace", row) | {k: row[k] for k in ("observations", "scores") if k in row}
        name = {"traceId": str(trace.get("id") or place)}
        yield place, name
        for part in [*trace["observations"], *(trace.get("scores") or [])]:
            if not isinstance(part, dict):
                cure = "export the trace with its observations and scores, not with their ids"
                raise InputError(f"{place}: an observation or score is {brief(part)}; {cure}")
            yield place, part | name


def _either(row: Row, name: str) -> Any:
    """Return the value of a key in the spelling of the API (traceId) or of the files (trace_id)."""
    return row.get(name) or row.get("".join(f"_{c.lower()}" if c.isupper() else c for c in name))


def _payload(value: Any) -> Any:
    """Return the JSON value that a text spells, if it spells an object or a list; any other value as it stands."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json_value(value, "", "")
    except InputError:  # a model may say something that only begins like JSON
        return value


def _defined(observation: Row, place: str) -> list[Row] | None:
    """Return the tools in `tool_definitions` of an exported file: descriptions and parameters by name."""
    given = _payload(_either(observation, "toolDefinitions")) or {}
    parts = {name: json_value(held, f"{place}: tool {name} is", "export it again") for name, held in given.items()}
    return [
        {"name": name, **held, "parameters": json_value(held.get("parameters"), f"{place}: tool {name} is", "mend it")}
        for name, held in parts.items()
    ] or None


def read_langsmith(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield the dialogues of each trace of runs; feedback of the root is the trace's, of a model's run its turn's."""
    for trace, runs in by_trace(rows, lambda run, place: str(run.get("trace_id") or run.get("id") or place)):
        runs.sort(key=lambda placed: str(placed[1].get("dotted_order") or placed[1].get("start_time") or ""))
        calls: list[Call] = []
        scores: dict[str, float] = {}
        results: dict[str, Message] = {}
        strays = 0
        for place, run in runs:
            with as_written("langsmith", place):
                found, call = _feedback(run, place), None
                if run.get("run_type") == "llm":
                    call = _langsmith_call(run, place)
                    calls.append(call)
                elif run.get("run_type") == "tool":
                    results |= _tool_message(run, place)
                inner = bool(run.get("parent_run_id"))
                strays += len(found) if inner and call is None else 0
                into = call.scores if inner and call is not None else {} if inner else scores
                for name, value in found.items():
                    add_score(into, name, value, f"{place}, trace {trace}")
        yield from dialogues_of(trace, calls, scores, results, place=runs[0][0], strays=strays)


def _object(run: Row, key: str) -> Any:
    return _payload(run.get(key)) or {}  # a bulk export holds objects as texts


def _feedback(run: Row, place: str) -> dict[str, float]:
    """Return the averages of a run's feedback by name."""
    return {
        name: score_of(held["avg"], f"{place}: feedback '{name}'")
        for name, held in _object(run, "feedback_stats").items()
        if isinstance(held, dict) and held.get("avg") is not None
    }


def _langsmith_call(run: Row, place: str) -> Call:
    tools = (_object(run, "extra").get("invocation_params") or {}).get("tools")
    return _call(_object(run, "inputs"), _object(run, "outputs"), place, tools)


def _tool_message(run: Row, place: str) -> dict[str, Message]:
    """Return what a tool's run said by the id of the call that it answers; nothing where it names none."""
    said = _plain(_object(run, "outputs").get("output"))
    if not isinstance(said, dict) or not said.get("tool_call_id"):
        return {}
    return {said["tool_call_id"]: normal_message({**said, "role": "tool"}, place)}


def _call(inputs: Any, output: Any, place: str, tools: Any = None) -> Call:
    """Return a call of a model from what it was given and what it answered."""
    asked, system = inputs, None
    if isinstance(inputs, dict):
        asked = inputs.get("messages", inputs.get("prompt", []))
        tools, system = tools or inputs.get("tools"), inputs.get("system")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if isinstance(asked, list) and len(asked) == 1 and isinstance(asked[0], list) and not _is_pair(asked[0]):
        asked = asked[0]  # LangChain calls in batches
    if not isinstance(asked, list):
        raise InputError(f"{place}: input: expected a list of messages, found {brief(asked)}; is it a call of a model?")
    schemas = [m["content"] for m in asked if isinstance(m, dict) and _is_schema(m)]  # Langfuse lists tools there
    given = [{"role": "system", "content": system}] * bool(system)  # Anthropic has it beside the messages
    given += [_plain(m) for m in asked if not (isinstance(m, dict) and _is_schema(m))]
    messages = [made for n, m in enumerate(given) for made in messages_of_parts(m, f"{place}: input, message {n}")]
    for answer in _answers(output):
        messages += messages_of_parts(answer, f"{place}: output")
    return Call(messages, normal_tools(tools or schemas, f"{place}: tools"))


def _is_schema(message: Row) -> bool:
    content = message.get("content")
    return message.get("role") == "tool" and isinstance(content, dict) and content.get("type") == "function"


def _answers(output: Any) -> list[Any]:
    """Return the messages in an output: a text, messages, `choices`, LangChain's `generations`, or a list of one."""
    if isinstance(output, str):
        return [{"role": "assistant", "content": output}] if output else []
    if isinstance(output, list):
        return [_plain(output)] if _is_pair(output) else _answers(output[0]) if output else []
    if not isinstance(output, dict):
        return []
    if isinstance(said := output.get("messages"), list) and said:
        return [_plain(message) for message in said]
    for key in ("choices", "generations", "message", "output"):
        if output.get(key):
            return _answers(output[key])
    plain = _plain(output)
    return [{"role": "assistant", **plain}] if plain.get("content") or plain.get("tool_calls") else []


def _is_pair(value: Any) -> bool:
    """Return whether a value is a message as LangChain's pair of role and text."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and value[0] in ROLE_OF and isinstance(value[1], str)


def _plain(message: Any) -> Any:
    """Return LangChain's serialised message as a chat message; others stay as they are."""
    if _is_pair(message):
        return {"role": message[0], "content": message[1]}
    if not isinstance(message, dict):
        return message
    if isinstance(message.get("kwargs"), dict) and isinstance(message.get("id"), list):
        held = message["kwargs"]
        return {**held, "role": LANGCHAIN.get(message["id"][-1].removesuffix("Chunk"), message["id"][-1])}
    if isinstance(message.get("data"), dict) and message.get("type") in ROLE_OF:
        return {**message["data"], "role": message["type"]}
    known = "role" not in message and message.get("type") in ROLE_OF  # an answer of Anthropic has type "message"
    return {**message, "role": message["type"]} if known else message
