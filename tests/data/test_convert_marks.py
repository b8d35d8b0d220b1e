"""Marks of messages that are no actions, `train` and OpenAI's `weight`, stay when logs are converted."""

import json

import pytest

from shiqrun.cli import main

MARKS = [{"weight": 0}, {"weight": 1}, {"train": False}, {"train": True}, {}, {"weight": 0, "train": False}]


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Converts one row by the command line; (exit code, the messages written, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(name, row):
        (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
        code = main(["convert", "log.jsonl", "--from", name, "--to", "out.jsonl"])
        out = tmp_path / "out.jsonl"
        return code, json.loads(out.read_text())["messages"] if out.exists() else [], capsys.readouterr().err

    return call


@pytest.mark.parametrize("mark", MARKS)
def test_marks_of_messages_are_kept(mark, convert):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **mark}]
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **mark}]
    assert convert("openai", {"messages": chat}) == (0, chat, "")
    assert convert("openai", {"request": {"messages": chat}, "response": {"choices": []}}) == (0, chat, "")
    assert convert("sharegpt", {"conversations": turns}) == (0, chat, "")


def function_call(name, **mark):
    return {"from": "function_call", "value": json.dumps({"name": name, "arguments": {}}), **mark}


@pytest.mark.parametrize("mark", MARKS)
def test_marks_of_function_calls_are_kept(mark, convert):
    turns = [{"from": "human", "value": "q"}, function_call("f", **mark), function_call("g", **mark)]
    code, messages, _ = convert("sharegpt", {"conversations": turns})
    assert (code, len(messages[-1].pop("tool_calls"))) == (0, 2)
    assert messages[-1] == {"role": "assistant", "content": "", **mark}


def test_function_calls_of_one_message_may_not_have_different_marks(convert):
    turns = [{"from": "human", "value": "q"}, function_call("f"), function_call("g", weight=0)]
    code, messages, err = convert("sharegpt", {"conversations": turns})
    assert (code, messages, err.count("\n")) == (2, [], 1)
    assert "log.jsonl:1: conversations, message 2" in err
    assert "weight" in err
