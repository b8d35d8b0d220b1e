"""`samples.jsonl` over a kill and a resume."""

import json

import pytest

from shiqrun.artifacts import append_samples, keep_samples

ODD = "line\u2028separator, next\u0085line, form\x0cfeed, vertical\x0btab, two\nlines, é, 字"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "samples.jsonl"
    for step in (0, 3, 6):
        append_samples(path, [{"step": step, "completion": f"{ODD} {n}"} for n in range(2)])
    return path


def rows(path):
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def test_every_evaluation_adds_its_rows(file):
    assert [r["step"] for r in rows(file)] == [0, 0, 3, 3, 6, 6]
    assert rows(file)[1]["completion"] == f"{ODD} 1"


@pytest.mark.parametrize(("step", "kept"), [(-1, []), (0, [0, 0]), (4, [0, 0, 3, 3]), (6, [0, 0, 3, 3, 6, 6])])
def test_rows_of_later_steps_go_and_the_others_stay_as_they_are(file, step, kept):
    before = file.read_bytes()
    keep_samples(file, step)
    assert [r["step"] for r in rows(file)] == kept
    assert before.startswith(file.read_bytes())
    append_samples(file, [{"step": 9}])
    assert [r["step"] for r in rows(file)] == [*kept, 9]


@pytest.mark.parametrize("lost", [1, 2, 20, 60])
def test_a_row_that_a_kill_cut_short_goes_too(file, lost):
    whole = file.read_bytes()
    file.write_bytes(whole[:-lost])
    keep_samples(file, 6)
    assert [r["step"] for r in rows(file)] == [0, 0, 3, 3, 6]


def test_a_file_that_is_not_there_is_not_made(tmp_path):
    keep_samples(tmp_path / "samples.jsonl", 3)
    assert not list(tmp_path.iterdir())
