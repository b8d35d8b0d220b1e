"""These converters read traces as Langfuse and LangSmith export them."""

from collections.abc import Iterator
from typing import Any

from shiqrun.data.convert.dialogue import Dialogue, PlacedRows, Row, score_of
from shiqrun.data.convert.messages import Message, normal_message, normal_messages, normal_tools
from shiqrun.data.convert.traces import Call, by_trace, dialogues_of

LANGCHAIN = {"HumanMessage": "user", "AIMessage": "assistant", "SystemMessage": "system", "ToolMessage": "tool"}


def read_langfuse(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield the dialogues of each trace with `observations` and `scores`; a generation is a call of the model."""
    for place, row in rows:
        trace = row.get("trace", row) | {k: row[k] for k in ("observations", "scores") if k in row}
        seen = sorted(trace["observations"], key=lambda o: str(o.get("startTime") or o.get("start_time") or ""))
        calls: dict[str, Call] = {}
        for observation in seen:
            if observation.get("type") == "GENERATION":
                where = f"{place}: observation {observation.get('id')}"
                calls[str(observation.get("id"))] = _call(observation.get("input"), observation.get("output"), where)
        scores: dict[str, float] = {}
        for score in trace.get("scores") or []:
            if isinstance(score, dict) and isinstance(score.get("value"), bool | int | float):  # categories are texts
                held = calls.get(str(score.get("observationId") or score.get("observation_id")))
                (held.scores if held else scores)[score["name"]] = score_of(score["value"], place)
        yield from dialogues_of(str(trace.get("id") or place), [*calls.values()], scores, {})


def read_langsmith(rows: PlacedRows) -> Iterator[Dialogue]:
    """Yield the dialogues of each trace of runs; feedback of the root is the trace's, of a model's run its turn's."""
    for trace, runs in by_trace(rows, lambda run, place: str(run.get("trace_id") or run.get("id") or place)):
        runs.sort(key=lambda placed: str(placed[1].get("dotted_order") or placed[1].get("start_time") or ""))
        calls, scores = [], {}
        results: dict[str, Message] = {}
        for place, run in runs:
            found = {
                name: score_of(stats["avg"], f"{place}: feedback '{name}'")
                for name, stats in (run.get("feedback_stats") or {}).items()
                if isinstance(stats, dict) and stats.get("avg") is not None
            }
            outputs, extra = run.get("outputs") or {}, run.get("extra") or {}
            if run.get("run_type") == "llm":
                tools = (extra.get("invocation_params") or {}).get("tools")
                call = _call(run.get("inputs"), outputs, place, tools)
                calls.append(call)
                if run.get("parent_run_id"):
                    call.scores.update(found)
                    found = {}
            elif run.get("run_type") == "tool":
                said = _plain(outputs.get("output"))
                if isinstance(said, dict) and said.get("tool_call_id"):
                    results[said["tool_call_id"]] = normal_message({**said, "role": "tool"}, place)
            if not run.get("parent_run_id"):
                scores.update(found)
        yield from dialogues_of(trace, calls, scores, results)


def _call(inputs: Any, output: Any, place: str, tools: Any = None) -> Call:
    """Return a call of a model from what it was given and what it answered, in OpenAI's or LangChain's form."""
    asked = inputs
    if isinstance(inputs, dict):
        asked = inputs.get("messages", inputs.get("prompt", []))
        tools = tools or inputs.get("tools")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if isinstance(asked, list) and len(asked) == 1 and isinstance(asked[0], list):  # LangChain calls in batches
        asked = asked[0]
    if isinstance(asked, list):
        schemas = [m["content"] for m in asked if isinstance(m, dict) and m.get("role") == "tool" and _is_schema(m)]
        asked = [_plain(m) for m in asked if not (isinstance(m, dict) and _is_schema(m))]  # Langfuse lists tools there
        tools = tools or schemas
    messages = normal_messages(asked, f"{place}: input")
    answer = _answer(output)
    if answer is not None:
        messages.append(normal_message(answer, f"{place}: output"))
    return Call(messages, normal_tools(tools, f"{place}: tools"))


def _is_schema(message: Row) -> bool:
    content = message.get("content")
    return message.get("role") == "tool" and isinstance(content, dict) and content.get("type") == "function"


def _answer(output: Any) -> Any:
    """Return the message in an output: a text, a message, `choices`, LangChain's `generations`, or a list of one."""
    if isinstance(output, str):
        return {"role": "assistant", "content": output}
    if isinstance(output, list):
        return _answer(output[0]) if output else None
    if not isinstance(output, dict):
        return None
    for key in ("choices", "generations", "messages", "message", "output"):
        if output.get(key):
            return _answer(output[key])
    plain = _plain(output)
    return {"role": "assistant", **plain} if plain.get("content") or plain.get("tool_calls") else None


def _plain(message: Any) -> Any:
    """Return LangChain's serialised message as a chat message; others stay as they are."""
    if not isinstance(message, dict):
        return message
    if isinstance(message.get("kwargs"), dict) and isinstance(message.get("id"), list):
        held = message["kwargs"]
        return {**held, "role": LANGCHAIN.get(message["id"][-1].removesuffix("Chunk"), message["id"][-1])}
    return {**message, "role": message["type"]} if "role" not in message and "type" in message else message
