"""`FORMATS` lists the logs that `shiqrun convert` reads, by the name that `--from` takes."""

from shiqrun.data.convert.chats import read_openai, read_sharegpt, read_steps, read_trajectories
from shiqrun.data.convert.dialogue import Format, Row
from shiqrun.data.convert.observability import read_langfuse, read_langsmith
from shiqrun.data.convert.otel import read_otel


def _is_otel(row: Row) -> bool:
    whole = {"resourceSpans", "resourceLogs"} & row.keys()
    return bool(whole or ({"traceId", "trace_id", "context"} & row.keys() and "attributes" in row))


def _is_langfuse(row: Row) -> bool:
    names = row.keys()
    of_trace, scored = {"traceId", "trace_id"} & names, {"dataType", "data_type"} & names
    return "observations" in row or bool(of_trace and ({"id", "type", "input", "output"} <= names or scored))


def _is_trajectory(row: Row) -> bool:
    return "trajectory" in row


FORMATS = {
    "openai": Format(
        "messages [, tools], or request and response",
        lambda row: "messages" in row or isinstance(row.get("request", row.get("body")), dict),
        read_openai,
    ),
    "sharegpt": Format("conversations [, system, tools]", lambda row: "conversations" in row, read_sharegpt),
    "otel": Format("traceId, spanId, attributes; or resourceSpans, resourceLogs", _is_otel, read_otel),
    "langfuse": Format("observations, scores; or rows of observations and of scores", _is_langfuse, read_langfuse),
    "langsmith": Format("id, trace_id, run_type, inputs, outputs", lambda row: "run_type" in row, read_langsmith),
    "openhands": Format("trajectory, tools, resolved", _is_trajectory, read_trajectories),
    "swe-agent": Format("trajectory (role, text), target", _is_trajectory, read_trajectories),
    "prm": Format(
        "prompt, completions, labels", lambda row: {"prompt", "completions", "labels"} <= row.keys(), read_steps
    ),
}
