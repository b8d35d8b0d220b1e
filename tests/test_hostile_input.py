"""Files that would crash a reader, through every command that reads data: exit code 2 and one line."""

import json
import os
import re
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiqrun.cli import main
from tests.support import helpers

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture(autouse=True)
def alarm():
    """Ends a test that hangs, as one that opens a pipe does."""

    def ring(*_):
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


COMMANDS = {
    "train": ("trainer.max_steps=1", "logger=none", "run_dir=run"),
    "inspect": (),
    "score": ("reward=exact_match", "run_dir=run"),
    "values": ("reward=exact_match", "values.samples=1", "values.max_new_tokens=2", "run_dir=run"),
}


def rows(n=6, **columns):
    return [{"prompt": f"question {i}", "completion": "a", "reward": i % 2, "answer": "a", **columns} for i in range(n)]


def write(*lines, name="rows.jsonl"):
    with open(name, "w") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    return f"data.path={name}"


def refused(capfd, command, *words):
    """The one line with which a command refuses its input, having made no run directory."""
    capfd.readouterr()  # what making the input said
    assert main([command, "data=jsonl", *COMMANDS[command], *words]) == 2
    assert not os.path.exists("run")
    said = capfd.readouterr().err.strip()
    assert said.count("\n") == 0, said
    assert "Traceback" not in said
    return said


def parquet_with_broken_text():
    good = pa.array([b"question 0", b"question \xff 1"], pa.binary())
    prompts = pa.StringArray.from_buffers(2, *good.buffers()[1:])
    table = pa.table({"prompt": prompts, "completion": ["a", "a"], "reward": [0, 1], "answer": ["a", "a"]})
    pq.write_table(table, "rows.parquet")
    return "data.path=rows.parquet"


def pipe():
    os.mkfifo("rows.jsonl")
    return "data.path=rows.jsonl"


def directory_with_a_pipe():
    os.mkdir("rows")
    os.mkfifo("rows/a.jsonl")
    return "data.path=rows"


HOSTILE = {
    "half a surrogate pair in a prompt": (lambda: write(*rows(), *rows(1, prompt="\ud800")), "rows.jsonl:7.*prompt"),
    "half a surrogate pair in an answer": (lambda: write(*rows(1, answer="\udfff")), "rows.jsonl:1.*answer"),
    "half a surrogate pair in a name": (lambda: write(*rows(1, **{"\ud800": 1})), "rows.jsonl:1.*ud800"),
    "a key twice": (
        lambda: write('{"prompt": "p", "completion": "a", "reward": 1, "reward": 0}'),
        "rows.jsonl:1.*reward",
    ),
    "a key twice in a message": (
        lambda: write('{"messages": [{"role": "user", "content": "p", "content": "q"}], "reward": 0}'),
        "rows.jsonl:1.*content",
    ),
    "invalid UTF-8 in Parquet": (parquet_with_broken_text, "rows.parquet row 2.*prompt.*UTF-8"),
    "a reward beyond 64 bits": (lambda: write(*rows(1, reward=2**64)), "rows.jsonl:1.*reward"),
    "a reward of 5,000 digits": (
        lambda: write('{"prompt": "p", "completion": "a", "answer": "a", "reward": 1' + "0" * 5000 + "}"),
        "rows.jsonl:1",
    ),
    "a list of rewards beyond 64 bits": (
        lambda: write(*rows(1, reward=None, rewards=[10**400])),
        "rows.jsonl:1.*rewards",
    ),
    "a pipe": (pipe, "rows.jsonl.*regular file"),
    "a pipe in a directory": (directory_with_a_pipe, "rows/a.jsonl.*regular file"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_would_crash_a_reader_is_refused_in_one_line(capfd, command, kind):
    made, said = HOSTILE[kind]
    message = refused(capfd, command, made())
    assert re.search(said, message), message


RAISING = {
    "a TypeError": "{{ messages[0].content + 1 }}",
    "an unknown filter": "{{ messages | nonsense }}",
    "a division by zero": "{{ 1 / (messages | length - messages | length) }}",
    "a value of None": "{% for m in messages %}{{ m.content.no.such }}{% endfor %}",
    "a syntax error": "{% for m in messages %}",
    "an error of its own": "{{ raise_exception('no such role') }}",
}


@pytest.mark.parametrize("command", ["train", "inspect", "values"])
@pytest.mark.parametrize("kind", RAISING)
def test_a_chat_template_that_raises_anything_is_refused_in_one_line(capfd, command, kind):
    tokenizer = helpers.tokenizer(RAISING[kind])
    helpers.llama(vocabulary=len(tokenizer)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    message = refused(capfd, command, write(*rows()), "model=hf", "model.path=model")
    assert "rows.jsonl:1" in message
    assert "chat template" in message
