"""Commands that write beside `train` end in one line on a full disk, and leave no partial file."""

import json
import resource

import pytest

from shiqrun.cli import main
from tests.report.fake_runs import finished_run
from tests.support.places import working_in

DATA = ("data=jsonl", "data.path=d.jsonl", "cache_dir=cache")
PROGRAMS = ("data=programs", "data.problems=20", "data.val_problems=20", "reward=programs", "model.hidden_size=16")
COMMANDS = {
    "report": ("report", "run", "--out", "page.html"),
    "convert": ("convert", "chats.jsonl", "--from", "openai", "--to", "rows.jsonl"),
    "score": ("score", *DATA, "reward=exact_match", "run_dir=scored{}"),
    "eval": ("eval", *PROGRAMS, "eval.max_new_tokens=3", "run_dir=answers{}"),
}


@pytest.fixture(scope="module")
def place(home):
    finished_run(home / "run")
    rows = [{"prompt": f"is {n} fine?", "completion": "yes " * 40, "reward": 1, "answer": "yes"} for n in range(300)]
    (home / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {"role": "assistant", "content": "yes " * 50}
    chats = [{"messages": [{"role": "user", "content": f"hi {n}"}, said]} for n in range(300)]
    (home / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return home


@pytest.mark.parametrize(("name", "kib"), [("report", 12), ("convert", 12), ("score", 1), ("score", 12), ("eval", 1)])
def test_a_full_disk_ends_a_command_in_one_line(place, name, kib, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with working_in(place):
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, before[1]))
        try:
            code = main([word.format(kib) for word in COMMANDS[name]])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    first, *rest = error.splitlines()
    assert code in (1, 2), error
    assert "cannot be written" in first
    assert "File too large" in first
    assert all("run directory" in line or "to go on" in line for line in rest), error
    assert not list(place.rglob("*.tmp"))
