import gzip
import json
import subprocess
import sys

import pytest

from shiqrun.environments.bfcl.samples import INSTALL, installed_data, load_samples
from shiqrun.errors import InputError
from tests.support.helpers import DATA

REAL = DATA / "bfcl_v3"
QUESTIONS, ANSWERS = "BFCL_v3_multi_turn_base.json", "possible_answer_BFCL_v3_multi_turn_base.json"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there (set SHIQRUN_TEST_DATA)")


@needs_real
def test_real_samples_are_counted_as_the_benchmark_says():
    samples = load_samples(REAL)
    turns = [calls for s in samples for calls in s.truth]
    assert (len(samples), len(turns), sum(map(len, turns)), turns.count([])) == (200, 745, 1160, 3)
    assert [s.index for s in samples] == [*range(200)]
    assert [s.id for s in samples] == [f"multi_turn_base_{n}" for n in range(200)]
    assert {(s.index, n) for s in samples for n, calls in enumerate(s.truth) if not calls} == {
        (167, 4),
        (180, 3),
        (180, 4),
    }
    assert all(len(s.questions) == len(s.truth) for s in samples)


@needs_real
def test_forty_real_samples_are_for_the_test_and_every_class_is_among_them():
    samples = load_samples(REAL)
    test = [s for s in samples if s.is_test]
    assert [s.index for s in test] == [*range(4, 200, 5)]
    assert {c for s in test for c in s.classes} == {c for s in samples for c in s.classes}
    assert len({c for s in samples for c in s.classes}) == 8


@needs_real
def test_real_samples_know_the_functions_that_their_reference_answers_call():
    for sample in load_samples(REAL):
        called = {call.split("(")[0].strip() for calls in sample.truth for call in calls}
        assert called <= sample.documented, sample.id


@needs_real
def test_installed_data_are_the_data_of_the_paper():
    pytest.importorskip("bfcl_eval", reason="needs bfcl-eval")
    there = [(s.id, s.questions, s.row, s.documents) for s in load_samples(REAL)]
    assert [(s.id, s.questions, s.row, s.documents) for s in load_samples(installed_data())] == there


def question(n, turns=2, classes=("MathAPI",), **changes):
    asked = [[{"role": "user", "content": f"{n}, turn {t}"}] for t in range(turns)]
    return {"id": f"b_{n}", "question": asked, "initial_config": {}, "involved_classes": [*classes]} | changes


def answer(n, turns=2):
    return {"id": f"b_{n}", "ground_truth": [[f"add(a={n}, b={t})"] for t in range(turns)]}


def written(folder, questions=None, answers=None):
    """A directory of two samples, or of these rows; a row may be text."""
    rows = {
        QUESTIONS: questions or [question(0), question(1)],
        ANSWERS: answers or [answer(1), answer(0)],
        "multi_turn_func_doc/math_api.json": [{"name": "add"}, {"name": "mean"}],
    }
    for name, lines in rows.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in lines))
    return folder


def test_hand_made_samples_are_read_with_their_own_answers(tmp_path):
    first, second = load_samples(written(tmp_path))
    assert (first.id, first.truth) == ("b_0", [["add(a=0, b=0)"], ["add(a=0, b=1)"]])
    assert (second.questions, second.documented) == (["1, turn 0", "1, turn 1"], {"add", "mean"})
    assert second.source == f"{tmp_path / QUESTIONS}:2"


def test_packed_files_and_a_folder_of_answers_are_read_alike(tmp_path):
    plain, other = written(tmp_path / "a"), written(tmp_path / "b")
    (other / f"{QUESTIONS}.gz").write_bytes(gzip.compress((other / QUESTIONS).read_bytes()))
    (other / QUESTIONS).unlink()
    (other / "possible_answer").mkdir()
    (other / ANSWERS).rename(other / "possible_answer" / QUESTIONS)
    assert [(s.id, s.row, s.documents) for s in load_samples(other)] == [
        (s.id, s.row, s.documents) for s in load_samples(plain)
    ]


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


BAD = {
    "a question lacks a key": ([question(0), without(question(1), "initial_config")], None, [":2", "'initial_config'"]),
    "an answer lacks its key": (None, [without(answer(0), "ground_truth")], [ANSWERS, ":1", "'ground_truth'"]),
    "unknown class": ([question(0, classes=["WebAPI"])], None, [":1", "'WebAPI'", "MathAPI"]),
    "no reference answer": ([question(0), question(7)], None, [":2", "b_7", "reference answer"]),
    "other number of turns": ([question(0, turns=3)], None, [":1", "b_0", "3 turns", "2 reference answers"]),
    "broken JSON": ([question(0), '{"id": '], None, [QUESTIONS, ":2", "JSON"]),
    "nested too deeply": (["[" * 100_000], None, [QUESTIONS, ":1", "JSON"]),
    "no object": (None, ["[1]"], [ANSWERS, ":1", "object"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(tmp_path, case):
    questions, answers, says = BAD[case]
    with pytest.raises(InputError) as raised:
        load_samples(written(tmp_path, questions, answers))
    assert all(part in str(raised.value) for part in says), raised.value


@pytest.mark.parametrize("missing", [QUESTIONS, ANSWERS, "multi_turn_func_doc/math_api.json"])
def test_a_missing_file_is_named(tmp_path, missing):
    (written(tmp_path) / missing).unlink()
    with pytest.raises(InputError, match=str(tmp_path)) as raised:
        load_samples(tmp_path)
    assert missing.partition("_")[2][-10:] in str(raised.value)


@pytest.mark.parametrize(
    "content", [gzip.compress(b'{"id": 1}\n' * 99, mtime=0)[:-20], b"no gzip", gzip.compress(b'{"a": "\xff"}', mtime=0)]
)
def test_a_file_that_cannot_be_unpacked_is_named(tmp_path, content):
    (written(tmp_path) / QUESTIONS).unlink()
    (tmp_path / f"{QUESTIONS}.gz").write_bytes(content)
    with pytest.raises(InputError, match=QUESTIONS):
        load_samples(tmp_path)


@pytest.mark.parametrize("absent", ["bfcl_eval", "mpmath"])
def test_without_the_package_the_message_says_how_to_install_it(absent):
    """In a process of its own, in which the module is nowhere to be found."""
    if absent == "mpmath":
        pytest.importorskip("bfcl_eval", reason="needs bfcl-eval")
    script = f"""
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] == {absent!r}:
            raise ModuleNotFoundError(name)

import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == {absent!r} else real(name, *more)
sys.meta_path.insert(0, Absent())
from shiqrun.environments.bfcl import backends, samples
samples.installed_data()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"InputError: data=bfcl plays against the functions of bfcl-eval, which is not installed: {INSTALL}" in (
        ended.stderr
    )


def test_what_test_samples_share_with_training_samples():
    """docs/bfcl.md says it: no question, and one reference answer."""
    pytest.importorskip("bfcl_eval", reason="reads the installed samples")
    samples = load_samples(installed_data())
    trained, held_out = ([s for s in samples if s.is_test == side] for side in (False, True))
    said = "\n".join(question.strip().lower() for s in trained for question in s.questions)
    assert not [s.id for s in held_out if any(question.strip().lower() in said for question in s.questions)]
    alike = [(s.id, t.id) for s in held_out for t in trained if s.truth == t.truth]
    assert alike == [("multi_turn_base_124", "multi_turn_base_120")]
