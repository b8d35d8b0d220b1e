"""Logs of other tools, written here by hand in their published schemas, become rows that `data=jsonl` reads."""

import json

import pytest

from shiqrun.cli import main

SCHEMA = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
READ_CALL = {**CALL, "function": {"name": "add", "arguments": {"a": 1}}}
ASKED = [{"role": "user", "content": "1+?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
ANSWERED = [*ASKED, {"role": "tool", "tool_call_id": "c1", "content": "2"}]
DONE = {"role": "assistant", "content": "two"}
DIALOGUE = [ASKED[0], {"role": "assistant", "content": "", "tool_calls": [READ_CALL]}, ANSWERED[2], DONE]


def part(kind, **keys):
    return {"type": kind, **keys}


def otlp(span, start, facts, events=()):
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in facts.items()]
    return {"traceId": "t1", "spanId": span, "startTimeUnixNano": start, "attributes": attributes, "events": [*events]}


SAID = [
    {"role": "user", "parts": [part("text", content="1+?")]},
    {"role": "assistant", "parts": [part("tool_call", id="c1", name="add", arguments={"a": 1})]},
    {"role": "tool", "parts": [part("tool_call_response", id="c1", response="2")]},
]
JUDGED = {
    "name": "gen_ai.evaluation.result",
    "attributes": [
        {"key": "gen_ai.evaluation.name", "value": {"stringValue": "correct"}},
        {"key": "gen_ai.evaluation.score.value", "value": {"doubleValue": 1}},
    ],
}
OTEL = [
    otlp("r", "0", {"gen_ai.operation.name": "invoke_agent"}, [JUDGED]),
    otlp("a", "1", {"gen_ai.input.messages": json.dumps(SAID[:1]), "gen_ai.output.messages": json.dumps(SAID[1:2])}),
    otlp("b", "2", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "c1"}),
    otlp(
        "c",
        "3",
        {
            "gen_ai.input.messages": json.dumps(SAID),
            "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [part("text", content="two")]}]),
            "gen_ai.tool.definitions": json.dumps([SCHEMA]),
        },
    ),
]
GENERATIONS = [
    {"id": "g1", "type": "GENERATION", "startTime": "1", "input": ASKED[:1], "output": ASKED[1]},
    {"id": "g2", "type": "GENERATION", "startTime": "2", "input": {"messages": ANSWERED, "tools": [SCHEMA]}},
]
GENERATIONS[1]["output"] = DONE
RUN = {"trace_id": "r", "start_time": "1"}
LANGCHAIN = {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "AIMessage"], "kwargs": {"content": "two"}}
LANGSMITH = [
    {**RUN, "id": "r", "run_type": "chain", "feedback_stats": {"correct": {"n": 1, "avg": 1.0}}},
    {
        **RUN,
        "id": "x",
        "parent_run_id": "r",
        "run_type": "llm",
        "inputs": {"messages": [ANSWERED]},
        "outputs": {"generations": [[{"text": "two", "message": LANGCHAIN}]]},
        "extra": {"invocation_params": {"tools": [SCHEMA]}},
    },
]
FROM = [
    {"from": "human", "value": "1+?"},
    {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
    {"from": "observation", "value": "2"},
    {"from": "gpt", "value": "two"},
]
LOGS = {
    "openai": [{"request": {"messages": ANSWERED, "tools": [SCHEMA]}, "response": {"choices": [{"message": DONE}]}}],
    "sharegpt": [{"conversations": FROM, "tools": json.dumps([SCHEMA["function"]])}],
    "openhands": [{"trajectory": [*ANSWERED, DONE], "tools": [SCHEMA], "resolved": 1}],
    "langfuse": [
        {"id": "l", "observations": GENERATIONS, "scores": [{"name": "s", "value": 1, "observationId": None}]}
    ],
    "langsmith": LANGSMITH,
    "otel": [{"resourceSpans": [{"scopeSpans": [{"spans": OTEL}]}]}],
}
LOGS["openai"][0]["reward"] = LOGS["sharegpt"][0]["score"] = 1


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Writes rows to a file and converts it; (exit code, rows, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(name, rows, *words):
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code = main(["convert", "log.jsonl", "--from", name, "--to", "out.jsonl", *words])
        said = capsys.readouterr()
        out = tmp_path / "out.jsonl"
        made = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, made, said.out, said.err

    return call


@pytest.mark.parametrize("name", LOGS)
def test_a_dialogue_with_a_tool_has_the_same_messages_tools_and_reward_in_every_format(name, convert):
    code, rows, out, err = convert(name, LOGS[name])
    assert (code, err) == (0, "")
    (row,) = rows
    messages = [m if "tool_calls" not in m or name != "sharegpt" else named(m) for m in row["messages"]]
    expected = [dict(m) for m in DIALOGUE]
    if name == "sharegpt":  # which gives calls no ids
        expected[2].pop("tool_call_id")
    assert messages == expected
    assert row["tools"] == [SCHEMA]
    assert row["reward"] == 1
    assert "1 dialogue: 1 written, 1 with tools" in out
    assert "shiqrun inspect data=jsonl data.path=out.jsonl" in out


def named(message):
    return {**message, "tool_calls": [{"id": "c1", **call} for call in message["tool_calls"]]}


def test_steps_with_labels_are_turns_with_rewards_which_inspect_shows(convert, capsys):
    code, rows, *_ = convert("prm", [{"prompt": "p", "completions": ["one", "two"], "labels": [True, False]}])
    assert (code, rows[0]["rewards"], len(rows[0]["messages"])) == (0, [1, 0], 3)
    assert main(["inspect", "data=jsonl", "data.path=out.jsonl", "data.val_fraction=0", "model=tiny"]) == 0
    assert "[ one<eos>]" in capsys.readouterr().out


def test_steps_of_swe_agent_are_messages_and_the_target_is_the_reward(convert):
    steps = [{"role": "system", "system_prompt": "s", "text": None}, {"role": "user", "text": "u"}]
    row = {"instance_id": "i", "trajectory": [*steps, {"role": "ai", "text": "a"}], "target": False}
    code, rows, *_ = convert("swe-agent", [row])
    assert (code, rows[0]["reward"], rows[0]["trace"]) == (0, 0, "i")
    assert [(m["role"], m["content"]) for m in rows[0]["messages"]] == [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "a"),
    ]


def test_older_attributes_of_spans_are_read(convert):
    facts = {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "q", "gen_ai.completion.0.content": "a"}
    code, rows, *_ = convert("otel", [{"trace_id": "t", "span_id": "s", "attributes": facts}])
    assert (code, [m["content"] for m in rows[0]["messages"]]) == (0, ["q", "a"])


def test_a_branch_is_a_row_of_its_own_and_scores_of_calls_are_rewards_of_turns(convert):
    other = {"id": "g3", "type": "GENERATION", "startTime": "3", "input": "sub", "output": "agent"}
    scores = [{"name": "s", "value": 0.5, "observationId": i} for i in ("g1", "g3")]
    trace = {"id": "l", "observations": [*GENERATIONS, other], "scores": scores}
    code, rows, *_ = convert("langfuse", [trace])
    assert (code, [row["rewards"] for row in rows]) == (0, [[0.5, 0], [0.5]])


def test_dialogues_without_an_answer_or_the_score_are_dropped_and_counted(convert):
    asked = {"messages": ASKED[:1]}
    code, rows, out, _ = convert("openai", [asked, {"messages": [ASKED[0], DONE]}, *LOGS["openai"]])
    assert (code, len(rows)) == (0, 1)
    assert "1 dropped: no model message (first: log.jsonl:1)" in out
    assert "1 dropped: no score `reward`" in out


BROKEN = {**CALL, "function": {"name": "add", "arguments": "{a:"}}


@pytest.mark.parametrize(
    ("name", "row", "parts"),
    [
        ("opnai", {}, ["unknown format", "did you mean openai?", "langsmith"]),
        ("sharegpt", {"messages": []}, ["log.jsonl:1", "looks like --from openai"]),
        ("openai", {"messages": [{"role": "assistant", "tool_calls": [BROKEN]}]}, ["log.jsonl:1", "no JSON"]),
        ("openai", {"messages": [DONE], "reward": 1, "score": 2}, ["several scores: reward, score", "--reward"]),
        ("openai", {"messages": []}, ["nothing to write", "no model message"]),
    ],
)
def test_input_that_cannot_work_gets_one_line_and_leaves_no_file(name, row, parts, convert):
    code, rows, _, err = convert(name, [row])
    assert (code, rows, err.count("\n")) == (2, [], 1)
    assert all(part in err for part in parts), err
