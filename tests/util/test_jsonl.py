import json
import os
import signal
import subprocess
import sys
import time

import pytest

from shiqrun.errors import InputError
from shiqrun.util.jsonl import append_lines, read_lines, truncate

ROWS = [{"a": 1}, {"a": "é\u2028"}, {"a": [None, 2.5]}]


def rows(path):
    return [line.row for line in read_lines(path, "mend it")]


def test_what_is_read_is_what_was_appended_with_its_places(tmp_path):
    path = tmp_path / "x.jsonl"
    starts = append_lines(path, ROWS[:1]) + append_lines(path, ROWS[1:]) + append_lines(path, [])
    lines = list(read_lines(path, ""))
    assert [line.row for line in lines] == ROWS
    assert [line.number for line in lines] == [1, 2, 3]
    assert [line.start for line in lines] == starts
    content = path.read_bytes()
    assert [json.loads(content[line.start : line.end]) for line in lines] == ROWS
    assert lines[-1].end == len(content)


def test_a_line_torn_at_any_byte_is_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    append_lines(path, ROWS)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        assert rows(path) == ROWS[: content[:size].count(b"\n")]


@pytest.mark.parametrize("line", [b"{\n", b"[1]\n", b"\0\0\n", b'{"b": 1}\n', b"\xff\n", b"\n"])
def test_a_line_that_is_broken_before_the_last_is_named(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'{"a": 2}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:2: a broken line; mend it"):
        list(read_lines(path, "mend it", lambda row: "a" in row))


@pytest.mark.parametrize("line", [b'{"b": 2}\n', b"[1]\n", b"null\n", b'"a"\n'])
def test_a_last_line_that_is_whole_and_does_not_fit_is_not_dropped(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line)
    with pytest.raises(InputError, match="jsonl:2: a broken line"):
        list(read_lines(path, "", lambda row: "a" in row))


def test_what_the_disk_refuses_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path, sync = tmp_path / "x.jsonl", os.fsync
    append_lines(path, ROWS[:1])

    def failing(number):
        monkeypatch.setattr(os, "fsync", sync)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space"):
        append_lines(path, ROWS[1:])
    assert rows(path) == ROWS[:1]


def test_a_file_is_cut_and_never_grows(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"12345")
    assert not truncate(path, 5)
    assert not truncate(path, 9)
    assert not truncate(tmp_path / "none", 0)
    assert truncate(path, 2)
    assert path.read_bytes() == b"12"


WRITER = """
import itertools, sys
from pathlib import Path
from shiqrun.util.jsonl import append_lines
for number in itertools.count():
    append_lines(Path(sys.argv[1]), [{"number": number, "text": "x" * 5000}])
    print(number, flush=True)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.11])
def test_a_killed_writer_loses_no_row_that_was_told(tmp_path, seconds):
    path = tmp_path / "x.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    writer.stdout.readline()
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    told = 1 + writer.stdout.read().count("\n")
    found = [row["number"] for row in rows(path)]
    assert found == list(range(len(found)))
    assert len(found) in (told, told + 1)


def test_any_bit_flip_in_a_sealed_line_is_found_and_older_lines_are_accepted(tmp_path):
    path = tmp_path / "x.jsonl"
    append_lines(path, ROWS[:1])
    append_lines(path, [{"a": 2.5, "text": "é"}, {"a": 3}], sealed=True)
    old, line, last = path.read_bytes().splitlines(keepends=True)
    assert rows(path) == [{"a": 1}, {"a": 2.5, "text": "é"}, {"a": 3}]
    for bit in range(8 * len(line) - 8):  # without the line feed
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(old + line + bytes(damaged) + last)
        with pytest.raises(InputError, match=r"x\.jsonl:\d: a (broken|changed) line"):
            rows(path)
