"""Logs in further parts of the published schemas that the converters' docstrings name, written here by hand."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.cli import main

ASK = {"role": "user", "content": "Weather in Paris?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RAIN = {"role": "tool", "content": "rainy", "tool_call_id": "c1"}
DONE = {"role": "assistant", "content": "It rains."}
TALK = [ASK, CALLED, RAIN, DONE]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
SCHEMA = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}
BARE = {"type": "function", "function": {"name": "now"}}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Converts files of rows, each a list written as JSON lines (or Parquet by name); (code, rows, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(name, *words, **files):
        for file, rows in files.items():
            if file == "table":
                pq.write_table(pa.Table.from_pylist(rows), "table.parquet")
            else:
                (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = [f"{file}.{'parquet' if file == 'table' else 'jsonl'}" for file in files]
        code = main(["convert", *given, "--from", name, "--to", "out.jsonl", *words])
        said = capsys.readouterr()
        out = tmp_path / "out.jsonl"
        made = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, made, said.out, said.err

    return call


def expect(found, *, messages=TALK, tools=(SCHEMA,), reward=1):
    """One row of these messages, tools and rewards was written."""
    code, rows, _, err = found
    assert (code, err, len(rows)) == (0, "", 1)
    assert rows[0]["messages"] == messages
    assert rows[0].get("tools", []) == list(tools)
    assert rows[0].get("reward", rows[0].get("rewards")) == reward


def test_openhands_tables_have_nulls_in_schemas_and_texts_as_arguments(convert):
    other = {"type": "object", "properties": {"path": {"type": "string"}}}  # Arrow gives each schema both properties
    tools = [SCHEMA, {"type": "function", "function": {"name": "edit", "description": "a file", "parameters": other}}]
    said = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    chat = [ASK, {**CALLED, "tool_calls": [said]}, {**RAIN, "name": "weather"}, DONE]
    row = {"trajectory_id": "t", "instance_id": "i", "trajectory": chat, "tools": tools, "resolved": 1}
    row |= {"exit_status": "submit", "gen_tests_correct": None, "pred_passes_gen_tests": 1.0}
    found = convert("openhands", table=[row])
    expect(found, messages=[ASK, CALLED, {**RAIN, "name": "weather"}, DONE], tools=tools)
    assert found[1][0]["trace"] == "t"


def test_swe_agent_tables_keep_the_system_prompt_in_a_column_of_its_own(convert):
    step = {"cutoff_date": "01.01.2023", "mask": False, "system_prompt": None, "text": None}
    steps = [{**step, "role": "system", "system_prompt": "s"}, {**step, "role": "user", "text": "u"}]
    steps.append({**step, "role": "ai", "text": "ls", "mask": True})
    row = {"instance_id": "i", "model_name": "m", "target": True, "trajectory": steps, "exit_status": "submitted"}
    said = [("system", "s"), ("user", "u"), ("assistant", "ls")]
    expect(convert("swe-agent", table=[row]), messages=[{"role": r, "content": c} for r, c in said], tools=())


def test_stepwise_supervision_of_trl(convert):
    row = {"prompt": "Which number is larger, 9.8 or 9.11?", "completions": ["0.8.", "0.11."], "labels": [True, False]}
    messages = [
        {"role": "user", "content": row["prompt"]},
        *({"role": "assistant", "content": c} for c in ("0.8.", "0.11.")),
    ]
    expect(convert("prm", log=[row]), messages=messages, tools=(), reward=[1, 0])


def part(kind, **keys):
    return {"type": kind, **keys}


INPUT = [
    {"role": "user", "parts": [part("text", content="Weather in Paris?")]},
    {"role": "assistant", "parts": [part("tool_call", id="c1", name="weather", arguments={"city": "Paris"})]},
    {"role": "tool", "parts": [part("tool_call_response", id="c1", response="rainy")]},
]
OUTPUT = [{"role": "assistant", "parts": [part("text", content="It rains.")], "finish_reason": "stop"}]
TOOLS = [{"type": "function", **SCHEMA["function"]}, {"type": "function", "name": "now", "parameters": None}]
FACTS = {"gen_ai.input.messages": json.dumps(INPUT), "gen_ai.output.messages": json.dumps(OUTPUT)}
JUDGED = {"gen_ai.evaluation.name": "correct", "gen_ai.evaluation.score.value": 1.0}


def any_value(value):
    """A value as OTLP's AnyValue."""
    if isinstance(value, dict):
        return {"kvlistValue": {"values": pairs(value)}}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(v) for v in value]}}
    kinds = {str: "stringValue", float: "doubleValue", bool: "boolValue", int: "intValue"}
    return {} if value is None else {kinds[type(value)]: str(value) if type(value) is int else value}


def pairs(facts):
    return [{"key": key, "value": any_value(value)} for key, value in facts.items()]


def exported(spans, records=()):
    """OTLP's JSON of a span and of log records, each (span id, facts[, further keys])."""
    made = [{"traceId": "t", "spanId": s, "startTimeUnixNano": "9", "attributes": pairs(f)} for s, f in spans]
    logs = [{"traceId": "t", "spanId": s, "attributes": pairs(f), **keys} for s, f, keys in records]
    return [
        {"resourceSpans": [{"scopeSpans": [{"spans": made}]}]},
        {"resourceLogs": [{"scopeLogs": [{"logRecords": logs}]}]},
    ]


@pytest.mark.parametrize("span", ["a", ""], ids=["by span", "by response"])
def test_evaluations_of_otel_are_log_records_and_schemas_may_be_null(convert, span):
    facts = FACTS | {"gen_ai.tool.definitions": json.dumps(TOOLS), "gen_ai.response.id": "r", "empty": None}
    record = (span, JUDGED | {"gen_ai.response.id": "r"}, {"eventName": "gen_ai.evaluation.result"})
    expect(convert("otel", log=exported([("a", facts)], [record])), tools=(SCHEMA, BARE), reward=[0, 1])


def test_the_content_of_a_call_may_be_in_a_log_record(convert):
    details = {"eventName": "gen_ai.client.inference.operation.details"}
    expect(convert("otel", log=exported([("a", JUDGED)], [("a", FACTS, details)])), tools=())


def test_spans_of_the_python_sdk_have_their_ids_in_a_context(convert):
    first = {"gen_ai.input.messages": json.dumps(INPUT[:1]), "gen_ai.output.messages": json.dumps(INPUT[1:2])}
    log = [
        {"context": {"trace_id": "0x1", "span_id": name}, "parent_id": parent, "start_time": time, "attributes": facts}
        for name, parent, time, facts in (
            ("0xa", None, "1", first),
            ("0xb", "0xa", "2", JUDGED),
            ("0xc", None, "3", FACTS),
        )
    ]
    expect(convert("otel", log=log), tools=(), reward=[1, 0])


def test_older_events_may_be_log_records_with_a_body(convert):
    raw = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    bodies = [
        ("gen_ai.user.message", {"content": "Weather in Paris?"}),
        ("gen_ai.assistant.message", {"tool_calls": [raw]}),
        ("gen_ai.tool.message", {"id": "c1", "content": "rainy"}),
        ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"content": "It rains."}}),
        ("gen_ai.choice", {"index": 1, "finish_reason": "stop", "message": {"content": "Rain."}}),
    ]
    records = [("a", {"event.name": name}, {"body": any_value(body)}) for name, body in bodies]
    expect(convert("otel", log=exported([("a", JUDGED)], records)), tools=())


def test_older_attributes_number_the_functions_too(convert):
    facts = {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "Weather in Paris?"}
    facts |= {f"gen_ai.completion.0.tool_calls.0.{k}": v for k, v in (("id", "c1"), ("name", "weather"))}
    facts |= {"gen_ai.completion.0.tool_calls.0.arguments": '{"city": "Paris"}'}
    facts |= {"llm.request.functions.0.name": "weather", "llm.request.functions.0.description": "of a city"}
    facts |= {"llm.request.functions.0.parameters": json.dumps(CITY)}
    log = [{"trace_id": "t", "span_id": "s", "attributes": facts}]
    expect(convert("otel", log=log), messages=TALK[:2], reward=None)


def generation(**keys):
    chat = {"messages": TALK[:3], "tools": [SCHEMA]}
    return {"id": "g", "type": "GENERATION", "startTime": "1", "input": chat, "output": DONE, **keys}


SCORES = [
    {"name": "s", "value": 1, "dataType": "BOOLEAN", "observationId": None},
    {"name": "tone", "value": 2, "stringValue": "kind", "dataType": "CATEGORICAL"},
]


def test_a_downloaded_trace_of_langfuse_and_its_categories(convert):
    expect(convert("langfuse", log=[{"trace": {"id": "l", "scores": SCORES}, "observations": [generation()]}]))


def test_files_of_langfuses_blob_storage_are_tables_of_texts(convert):
    defined = {"weather": json.dumps({"description": "of a city", "parameters": json.dumps(CITY)})}
    row = {"trace_id": "l", "id": "g", "type": "GENERATION", "start_time": "2026-01-01 00:00:00.000000"}
    row |= {"input": json.dumps(TALK[:3]), "output": json.dumps(DONE), "tool_definitions": defined}
    score = {"trace_id": "l", "observation_id": None, "name": "s", "value": 1, "data_type": "NUMERIC"}
    text = {**score, "name": "t", "value": 0, "data_type": "TEXT"}
    expect(convert("langfuse", table=[row], scores=[score, text]))


def test_a_trace_that_lists_ids_alone_is_refused(convert):
    code, _, _, err = convert("langfuse", log=[{"id": "l", "observations": ["g"], "scores": []}])
    assert (code, err.count("\n")) == (2, 1)
    assert "log.jsonl:1" in err
    assert "not with their ids" in err


def run(inputs, outputs, **keys):
    return {"id": "r", "trace_id": "r", "run_type": "llm", "inputs": inputs, "outputs": outputs} | keys


STATS = {"correct": {"n": 1, "avg": 1.0}}
ASKED = {"role": "user", "content": [part("text", text="Weather in Paris?")]}
ANTHROPIC = [
    ASKED,
    {"role": "assistant", "content": [part("tool_use", id="c1", name="weather", input={"city": "Paris"})]},
    {"role": "user", "content": [part("tool_result", tool_use_id="c1", content=[part("text", text="rainy")])]},
]
LANGCHAIN = [
    {"role": "assistant", "content": [part("tool_call", name="weather", args={"city": "Paris"}, id="c1")]},
    {"role": "tool", "tool_call_id": "c1", "content": [part("text", text="rainy")]},
    {"role": "assistant", "content": [part("text", text="It rains."), part("reasoning", text="hm")]},
]
REASONED = [*TALK[:3], {**DONE, "reasoning_content": "hm"}]
SAYS = {"role": "assistant", "type": "message", "content": [part("text", text="It rains.")]}
TOOL = {"name": "weather", "description": "of a city", "input_schema": CITY}


@pytest.mark.parametrize(
    ("inputs", "outputs", "messages"),
    [
        ({"messages": [ASKED], "tools": [SCHEMA]}, {"messages": LANGCHAIN}, REASONED),
        ({"messages": ANTHROPIC, "tools": [TOOL], "system": "Be brief."}, SAYS, None),
        ({"messages": [["user", "Weather in Paris?"]], "tools": [SCHEMA]}, ["assistant", "It rains."], [ASK, DONE]),
    ],
    ids=["LangChain", "Anthropic", "pairs"],
)
def test_runs_of_langsmith_have_messages_in_three_forms(convert, inputs, outputs, messages):
    messages = messages or [{"role": "system", "content": "Be brief."}, *TALK]
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    expect(convert("langsmith", log=[run(inputs, outputs, feedback_stats=STATS)]), messages=messages)


def test_a_bulk_export_of_langsmith_holds_objects_as_texts(convert):
    row = run({"messages": TALK[:3], "tools": [SCHEMA]}, {"choices": [{"message": DONE}]}, feedback_stats=STATS)
    texts = {key: json.dumps(row[key]) for key in ("inputs", "outputs", "feedback_stats")}
    expect(convert("langsmith", table=[row | texts | {"extra": "{}"}]))


def test_a_trace_without_a_models_message_is_named_by_file_row_and_cure(convert):
    log = [{"traceId": "t", "spanId": "s", "attributes": {"gen_ai.operation.name": "chat"}}]
    code, _, _, err = convert("otel", log=log)
    assert (code, err.count("\n")) == (2, 1)
    assert "no model message (first: log.jsonl:1, trace t); record the content of messages, too" in err
