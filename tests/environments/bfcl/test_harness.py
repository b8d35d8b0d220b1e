import ast
import subprocess
import sys

import pytest

from shiqrun.environments.bfcl.harness import STOPPED, Harness, Verdict
from shiqrun.errors import InputError
from tests.environments.bfcl.dialogues import calculator, real, with_truth

pytest.importorskip("bfcl_eval", reason="the functions of BFCL come with bfcl-eval")

ENDLESS = "power(base=9, exponent=100000000)"
LITTLE = 0.5  # seconds of processor time


@pytest.fixture(scope="module")
def harness():
    with Harness() as made:
        yield made


def files(n=0):
    """A sample with files and numbers."""
    return [s for s in real() if s.classes == ["GorillaFileSystem", "MathAPI"]][n]


def test_an_endless_call_is_stopped_and_both_open_sessions_go_on_where_they_were():
    first, second = files(0), files(1)
    with Harness(LITTLE) as harness:
        sessions = [harness.open(first), harness.open(second)]
        verdicts = [[], []]
        for turn in range(max(len(first.truth), len(second.truth))):
            for session, sample, seen in zip(sessions, (first, second), verdicts, strict=True):
                for n, call in enumerate(sample.truth[turn] if turn < len(sample.truth) else []):
                    session.run(call)
                    if session is sessions[0] and turn == 0 and n == 0:
                        assert session.run(ENDLESS) == STOPPED  # in the middle of a turn of both
                if turn < len(sample.truth):
                    seen.append(session.end_turn())
        assert verdicts == [[Verdict(True, True, "")] * len(s.truth) for s in (first, second)]
        assert [session.stopped for session in sessions] == [1, 0]
        assert harness.ended == 1


def test_state_outlives_the_process_that_it_was_made_in():
    with Harness(LITTLE) as harness:
        one, other = harness.open(files()), harness.open(files())
        one.run("mkdir(dir_name='mine')")
        before = one.run("ls()"), other.run("ls()")
        assert "mine" in before[0]
        assert "mine" not in before[1]  # two sessions of one sample
        for _ in range(2):
            assert one.run(ENDLESS) == STOPPED
            assert (one.run("ls()"), other.run("ls()")) == before


def test_a_call_that_asks_for_all_memory_is_answered_and_the_session_goes_on():
    with Harness(LITTLE) as harness:
        session = harness.open(calculator(["add(a=1, b=2)"]))
        hog = "square_root(number=2, precision=999999999999999999)"  # so many digits
        assert session.run(hog) == STOPPED
        assert session.stopped == 1
        assert session.run("add(a=1, b=2)") == '{"result": 3}'
        assert session.end_turn() == Verdict(True, True, "")


def test_a_folder_in_itself_is_walked_to_an_error(harness):
    session = harness.open(files())
    session.run("mkdir(dir_name='a')")
    session.run("cp(source='a', destination='a')")
    assert session.run("find(path='.', name='x')").startswith("Error during execution: ")
    assert session.run("mkdir(dir_name='b')") == "None"
    assert session.end_turn().right is False


def test_a_reference_answer_that_does_not_end_loses_its_turns_and_nothing_else():
    sample = calculator([ENDLESS], [], ["add(a=1, b=2)"])
    with Harness(LITTLE) as harness:
        session, other = harness.open(sample), harness.open(files())
        other.run("mkdir(dir_name='mine')")
        verdicts = []
        for _ in sample.truth:
            session.run("add(a=1, b=2)")
            verdicts.append(session.end_turn())
        assert verdicts == [Verdict(counted, False, "stopped") for counted in (True, False, True)]
        assert "mine" in other.run("ls()")


def test_verdicts_say_what_is_wrong(harness):
    sample = with_truth(files(), [["mkdir(dir_name='a')"], ["ls()"], [], ["ls()"]])
    session, verdicts = harness.open(sample), []
    for calls in ([], ["mkdir(dir_name='a')", "ls()"], ["pwd()"], ["ls()"]):
        for call in calls:
            session.run(call)
        verdicts.append(session.end_turn())
    assert [(v.counted, v.right) for v in verdicts] == [(True, False), (True, True), (False, False), (True, True)]
    assert [v.why for v in verdicts] == ["no call", "", "no reference answer", ""]
    session = harness.open(with_truth(files(), [["ls()"], ["pwd()"]]))
    session.run("pwd()")
    assert session.end_turn().why == "execution response mismatch"
    session.run("mkdir(dir_name='a')")
    assert session.end_turn().why == "instance state mismatch"


@pytest.mark.parametrize("state", [{"GorillaFileSystem": {"root": 7}}, {"GorillaFileSystem": 7}, []])
def test_a_state_that_does_not_load_names_the_sample(harness, state):
    sample = files()
    broken = with_truth(sample, sample.truth)
    broken.row["initial_config"] = state
    with pytest.raises(InputError, match=f"{sample.source}.*{sample.id} does not load into GorillaFileSystem, MathAPI"):
        harness.open(broken)
    assert harness.open(sample).run("ls()")


def test_a_state_that_loads_without_end_names_the_sample(monkeypatch, tmp_path):
    sabotage(monkeypatch, tmp_path, "GorillaFileSystem._load_scenario = lambda *a, **k: 9 ** 100000000 and None")
    with Harness(LITTLE) as harness, pytest.raises(InputError, match=f"{files().id} .*too much time"):
        harness.open(files())


def sabotage(monkeypatch, folder, line):
    """Every Python process begun from here on runs this line first, with the backends at hand."""
    where = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
    (folder / "sitecustomize.py").write_text(
        f"import os, resource, sys\nfrom {where}.math_api import MathAPI\n"
        f"from {where}.gorilla_file_system import GorillaFileSystem\n{line}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")


def test_a_call_that_waits_is_ended_too(monkeypatch, tmp_path):
    """Waiting takes no processor time; what is ended does not go on behind our backs."""
    late = tmp_path / "late"
    sabotage(
        monkeypatch, tmp_path, f"MathAPI.add = lambda *_, **k: __import__('time').sleep(2) or os.mkdir({str(late)!r})"
    )
    with Harness() as harness:
        session = harness.open(calculator(["add(a=1, b=2)"]))
        with monkeypatch.context() as patch:
            patch.setattr(harness, "wall_seconds", 0.2)
            assert session.run("add(a=1, b=2)") == STOPPED
        assert session.run("power(base=2, exponent=3)") == '{"result": 8}'
    assert not late.exists()


def test_what_a_backend_prints_is_no_answer(monkeypatch, tmp_path):
    says = "print('{\"result\": 0}', flush=True), os.write(1, b'{}\\n'), print('x', file=sys.__stdout__, flush=True)"
    sabotage(monkeypatch, tmp_path, f"MathAPI.add = lambda self, a, b: [{says}] and {{'result': a + b}}")
    with Harness() as harness:
        session = harness.open(calculator(["add(a=1, b=2)"]))
        assert [session.run(f"add(a=1, b={n})") for n in (2, 3, 4)] == [f'{{"result": {n}}}' for n in (3, 4, 5)]
        assert session.end_turn() == Verdict(True, True, "")


def test_a_backend_writes_no_file(monkeypatch, tmp_path):
    written = tmp_path / "written"
    sabotage(
        monkeypatch,
        tmp_path,
        f"MathAPI.add = lambda self, a, b: open({str(written)!r}, 'w', buffering=1).write('x\\n')",
    )
    with Harness() as harness:
        assert "File too large" in harness.open(calculator(["add(a=1, b=2)"])).run("add(a=1, b=2)")
    assert not written.exists() or written.read_bytes() == b""


def test_the_process_is_limited_and_has_no_torch_in_it(monkeypatch, tmp_path):
    asks = "sorted({m.split('.')[0] for m in sys.modules}), resource.getrlimit(resource.RLIMIT_AS)[1]"
    sabotage(monkeypatch, tmp_path, f"MathAPI.add = lambda self, a, b: repr(({asks}))")
    with Harness() as harness:
        said = harness.open(calculator(["add(a=1, b=2)"])).run("add(a=1, b=2)")
    modules, memory = ast.literal_eval(said)
    assert {"bfcl_eval", "shiqrun"} <= set(modules)
    assert not {"torch", "numpy", "transformers", "hydra"} & set(modules)
    assert memory == 1 << 30


def test_a_process_that_does_not_start_is_reported(monkeypatch, tmp_path):
    sabotage(monkeypatch, tmp_path, "os._exit(3)")
    with pytest.raises(InputError, match=r"-m shiqrun\.environments\.bfcl\.worker"):
        Harness().open(files())


def test_closed_sessions_are_forgotten_and_the_process_ends_with_its_harness():
    with Harness() as harness:
        session = harness.open(files())
        session.run("ls()")
        process = harness._process
        session.close()
        session.close()  # once more does nothing
        assert harness.open(files()).run("ls()")
    assert process.returncode is not None


def test_the_process_ends_with_its_input():
    done = subprocess.run(
        [sys.executable, "-m", "shiqrun.environments.bfcl.worker", "1"],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "{}\n"
