"""A row of a log whose parts have other types than the format writes is one line that names the row."""

import json

import pytest

from shiqrun.cli import main

ASK, DONE = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
GENERATION = {"id": "g", "type": "GENERATION", "input": [ASK], "output": "a"}
RUN = {"id": "r", "trace_id": "r", "run_type": "llm", "inputs": {"messages": [ASK]}, "outputs": {"output": "a"}}
SPAN = {"traceId": "t", "spanId": "a", "attributes": {}}
GOOD = {
    "prm": {"prompt": "q", "completions": ["a"], "labels": [True]},
    "openai": {"messages": [ASK, DONE]},
    "openhands": {"trajectory": [ASK, DONE]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "langfuse": {"id": "l", "observations": [GENERATION]},
    "langsmith": RUN,
    "otel": SPAN
    | {
        "attributes": {
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": "q",
            "gen_ai.completion.0.content": "a",
        }
    },
}


def answered(choices):
    return {"request": {"messages": [ASK]}, "response": {"choices": choices}}


def facts(**keys):
    return SPAN | {"attributes": {f"gen_ai.{key.replace('_', '.')}": value for key, value in keys.items()}}


MALFORMED = [
    ("prm", GOOD["prm"] | {"prompt": 5}),
    ("prm", GOOD["prm"] | {"prompt": None}),
    ("openai", GOOD["openai"] | {"scores": [1, 2]}),
    ("openai", answered(5)),
    ("openai", answered([5])),
    ("openai", answered({"a": 1})),
    ("openhands", GOOD["openhands"] | {"scores": "high"}),
    ("sharegpt", GOOD["sharegpt"] | {"scores": 3}),
    ("langfuse", {"id": "l", "observations": None}),
    ("langfuse", {"id": "l", "observations": [GENERATION], "scores": 5}),
    ("langfuse", {"id": "l", "trace": 5, "observations": [GENERATION]}),
    ("langfuse", {"id": "l", "observations": [GENERATION | {"toolDefinitions": [1]}]}),
    ("langfuse", {"id": "l", "observations": [GENERATION | {"toolDefinitions": {"f": "5"}}]}),
    ("langsmith", RUN | {"feedback_stats": [1]}),
    ("langsmith", RUN | {"extra": "x"}),
    ("langsmith", RUN | {"extra": {"invocation_params": [1]}}),
    ("langsmith", RUN | {"run_type": "tool", "outputs": [1]}),
    ("otel", {"resourceSpans": {"a": 1}}),
    ("otel", {"resourceSpans": [5]}),
    ("otel", {"resourceSpans": [{"scopeSpans": 5}]}),
    ("otel", {"resourceSpans": [{"scopeSpans": [{"spans": [5]}]}]}),
    ("otel", SPAN | {"attributes": [5]}),
    ("otel", SPAN | {"attributes": 5}),
    ("otel", SPAN | {"attributes": [{"value": {"stringValue": "x"}}]}),
    ("otel", SPAN | {"attributes": [{"key": "k", "value": {"intValue": "x"}}]}),
    ("otel", SPAN | {"events": [5]}),
    ("otel", SPAN | {"events": 5}),
    ("otel", {"context": 5, "attributes": {}}),
    ("otel", facts(input_messages="5")),
    ("otel", facts(output_messages="5")),
    ("otel", facts(output_messages='{"a": 1}')),
    ("otel", SPAN | {"events": [{"name": "gen_ai.choice", "attributes": {"message": "5"}}]}),
]


@pytest.mark.parametrize(("name", "row"), MALFORMED)
def test_a_row_of_another_shape_is_one_line_that_names_file_and_row(name, row, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = GOOD[name] | ({"id": "z", "trace_id": "z"} if name == "langsmith" else {})
    rows = [good, row, good | ({"traceId": "z"} if name == "otel" else {})]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert main(["convert", "log.jsonl", "--from", name, "--to", "out.jsonl"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("shiqrun: error: log.jsonl:2")
    assert f": not as {name} writes it (" in err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("name", GOOD)
def test_the_rows_beside_it_are_read(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.jsonl").write_text(json.dumps(GOOD[name]) + "\n")
    assert main(["convert", "log.jsonl", "--from", name, "--to", "out.jsonl"]) == 0
    assert "1 written" in capsys.readouterr().out
