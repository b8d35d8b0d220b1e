"""Scores in traces reach the turns and dialogues that they judge, and what is left out is counted."""

import json

import pytest

from shiqrun.cli import main


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


FIRST, SECOND = [user("1+1?")], [user("1+1?"), said("2"), user("2+2?")]
ANSWERS = [(FIRST, "2", 1), (SECOND, None, -5), (SECOND, "4", 1)]
"""Three calls of a model: its messages, the answer (the second call failed) and the score."""


def langfuse(calls):
    ids = [f"g{n}" for n, _ in enumerate(calls)]
    made = [
        {"id": i, "type": "GENERATION", "startTime": i[1:], "input": asked, "output": answer}
        for i, (asked, answer, _) in zip(ids, calls, strict=True)
    ]
    return [{"id": "t", "observations": made, "scores": [numeric(c[2], i) for i, c in zip(ids, calls, strict=True)]}]


def numeric(value, judged=None, name="right"):
    return {"name": name, "value": value, "dataType": "NUMERIC", "observationId": judged}


def langsmith(calls):
    made = [{"id": "r", "trace_id": "t", "run_type": "chain", "dotted_order": "0"}]
    for n, (asked, answer, score) in enumerate(calls, 1):
        outputs = None if answer is None else {"choices": [{"message": said(answer)}]}
        seen = {"inputs": {"messages": asked}, "outputs": outputs, "feedback_stats": {"right": {"n": 1, "avg": score}}}
        of = {"id": str(n), "trace_id": "t", "parent_run_id": "r", "dotted_order": str(n), "run_type": "llm"}
        made.append(of | seen)
    return made


def as_parts(messages):
    return [{"role": m["role"], "parts": [{"type": "text", "content": m["content"]}]} for m in messages]


def judged(value):
    facts = {"gen_ai.evaluation.name": "right", "gen_ai.evaluation.score.value": value}
    return {"name": "gen_ai.evaluation.result", "attributes": facts}


def span(name, facts=None, value=None, **keys):
    events = [] if value is None else [judged(value)]
    return {"traceId": "t", "spanId": name, "attributes": facts or {}, "events": events, **keys}


def otel(calls):
    made = [span("r", startTimeUnixNano="0")]
    for n, (asked, answer, score) in enumerate(calls, 1):
        facts = {"gen_ai.input.messages": as_parts(asked)}
        if answer is not None:
            facts["gen_ai.output.messages"] = as_parts([said(answer)])
        made.append(span(f"s{n}", facts, score, startTimeUnixNano=str(n), parentSpanId="r"))
    return made


WRITE = {"langfuse": langfuse, "langsmith": langsmith, "otel": otel}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Converts rows by the command line; (exit code, rows, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(name, rows, *words):
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code = main(["convert", "log.jsonl", "--from", name, "--to", "out.jsonl", *words])
        out = tmp_path / "out.jsonl"
        made = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, made, *capsys.readouterr()

    return call


@pytest.mark.parametrize("failed", [None, ""])
@pytest.mark.parametrize("name", WRITE)
def test_a_failed_call_gives_its_score_to_no_turn_and_is_counted(name, failed, convert):
    calls = [(asked, failed if answer is None else answer, score) for asked, answer, score in ANSWERS]
    code, (row,), out, err = convert(name, WRITE[name](calls))
    assert (code, err) == (0, "")
    assert row["messages"] == [*SECOND, said("4")]
    assert row["rewards"] == [1, 1]
    assert "1 dropped: call without an answer (first: log.jsonl:1, trace t)" in out


@pytest.mark.parametrize("name", WRITE)
def test_a_trace_of_failed_calls_has_no_row(name, convert):
    calls = [(FIRST, None, 1), (FIRST, None, 0)]
    code, rows, _, err = convert(name, WRITE[name](calls))
    assert (code, rows, err.count("\n")) == (2, [], 1)
    assert "nothing to write" in err
    assert "2 dropped: call without an answer" in err


@pytest.mark.parametrize("name", WRITE)
def test_calls_of_one_turn_may_not_have_different_scores(name, convert):
    code, rows, _, err = convert(name, WRITE[name]([(FIRST, "2", 1), (FIRST, "2", 0)]))
    assert (code, rows, err.count("\n")) == (2, [], 1)
    assert "log.jsonl:1, trace t: turn 0" in err
    assert "'right' is 1 and 0" in err
    code, rows, *_ = convert(name, WRITE[name]([(FIRST, "2", 1), (FIRST, "2", 1)]))
    assert (code, [row["rewards"] for row in rows]) == (0, [[1]])


STRAY = {
    "langfuse": [
        {
            "id": "t",
            "observations": [
                {"id": "s", "type": "SPAN"},
                {"id": "g", "type": "GENERATION", "input": FIRST, "output": "2"},
            ],
            "scores": [numeric(1), numeric(0, "s")],
        }
    ],
    "langsmith": [
        {"id": "r", "trace_id": "t", "run_type": "chain", "feedback_stats": {"right": {"avg": 1}}},
        langsmith([(FIRST, "2", 0)])[1] | {"feedback_stats": None},
        {
            "id": "x",
            "trace_id": "t",
            "parent_run_id": "r",
            "run_type": "tool",
            "feedback_stats": {"right": {"avg": 0}},
        },
    ],
    "otel": [
        span("r", value=1),
        {k: v for k, v in otel([(FIRST, "2", 0)])[1].items() if k != "events"},
        span("x", {"gen_ai.operation.name": "execute_tool"}, 0, parentSpanId="r"),
    ],
}


@pytest.mark.parametrize("name", STRAY)
def test_a_score_of_another_step_is_dropped_and_counted(name, convert):
    code, (row,), out, err = convert(name, STRAY[name])
    assert (code, err, row["reward"]) == (0, "", 1)
    assert "1 dropped: score of a step that is no call of a model (first: log.jsonl:" in out


def test_a_score_that_only_other_steps_have_is_named_with_the_reason(convert):
    trace = STRAY["langfuse"][0] | {"scores": [numeric(1, "s"), numeric(1, "gone")]}
    code, rows, _, err = convert("langfuse", [trace], "--reward", "right")
    assert (code, rows, err.count("\n")) == (2, [], 1)
    assert "no such score; found none; 2 dropped: score of a step" in err


def test_an_evaluation_of_a_span_that_is_not_in_the_log_is_not_of_the_trace(convert):
    call = otel([(FIRST, "2", None)])[1]
    record = {"traceId": "t", "spanId": "gone", "eventName": "e", "attributes": judged(1)["attributes"]}
    _, (row,), out, _ = convert("otel", [call, record])
    assert "reward" not in row
    assert "1 dropped: score of a step" in out
    _, (row,), out, _ = convert("otel", [call, {k: v for k, v in record.items() if k != "spanId"}])
    assert (row["reward"], "dropped" in out) == (1, False)


@pytest.mark.parametrize(
    ("name", "rows", "where"),
    [
        ("langfuse", [langfuse(ANSWERS[:1])[0] | {"scores": [numeric(1), numeric(0)]}], "trace t"),
        ("langfuse", [langfuse(ANSWERS[:1])[0] | {"scores": [numeric(1, "g0"), numeric(0, "g0")]}], "observation g0"),
        (
            "langsmith",
            [{**STRAY["langsmith"][0]}, {**STRAY["langsmith"][0], "feedback_stats": {"right": {"avg": 0}}}],
            "",
        ),
        ("otel", [span("r", value=1), span("q", value=0)], "trace t"),
        ("otel", [otel(ANSWERS)[1] | {"events": [judged(1), judged(0)]}], "span s1"),
    ],
)
def test_two_values_of_one_score_are_an_error_that_names_the_trace(name, rows, where, convert):
    code, made, _, err = convert(name, rows)
    assert (code, made, err.count("\n")) == (2, [], 1)
    assert all(part in err for part in ("log.jsonl:", "trace t", where, "score 'right' is 1 and 0"))
