"""Processes for real, of small programs: how they are started, told to stop, and taken down."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from shiqrun.errors import InputError
from shiqrun.sweeping.run import Runner, command_words, error_lines
from shiqrun.sweeping.state import Job, Sweep, load

PRELUDE = """
import os, signal, sys, time
from pathlib import Path
here = Path([w for w in sys.argv if w.startswith("run_dir=")][0].partition("=")[2].strip("'"))
number = int(here.name)
"""


def sweep_of(folder, count, **fields):
    jobs = [Job(n, str(n), [f"seed={n}"], {"seed": str(n)}, **fields) for n in range(count)]
    return Sweep(folder, "train", [], str(folder), [], jobs)


def run(sweep, program, parallel=1):
    return Runner(sweep, [sys.executable, "-c", PRELUDE + program], parallel).run()


def stands(sweep):
    return [(job.status, job.exit_code) for job in sweep.jobs]


def test_every_job_runs_in_the_end_and_its_output_is_kept(tmp_path, capsys):
    sweep = sweep_of(tmp_path, 2)
    assert run(sweep, "print('hello', *sys.argv[1:])") == 0
    assert f"2 jobs, 1 at a time, in {tmp_path}\n" in capsys.readouterr().out
    assert stands(sweep) == [("finished", 0)] * 2
    assert (tmp_path / "1/console.log").read_text() == f"hello seed=1 run_dir='{tmp_path}/1'\n"


def test_a_job_that_fails_is_recorded_with_its_last_lines_and_the_others_go_on(tmp_path):
    sweep = sweep_of(tmp_path, 3)
    code = run(sweep, "print('one'); print('shiqrun: failed: why'); sys.exit(number and number + 1)")
    assert code == 1
    assert stands(load(tmp_path)) == [("finished", 0), ("failed", 2), ("failed", 3)]
    assert sweep.jobs[2].error == ["shiqrun: failed: why"]


def test_a_job_that_is_killed_is_recorded_with_the_signal(tmp_path):
    sweep = sweep_of(tmp_path, 1)
    assert run(sweep, "print('step 3', flush=True); os.kill(os.getpid(), signal.SIGKILL)") == 1
    assert stands(sweep) == [("failed", 137)]
    assert sweep.jobs[0].error == ["step 3", "killed by SIGKILL (memory?)"]


MEET = """
(here / "came").touch()
end = time.monotonic() + 30
while not all((here.parent / str(n) / "came").exists() for n in (0, 1)):
    if time.monotonic() > end: sys.exit("alone")
    time.sleep(0.01)
"""


def test_two_at_a_time_run_at_the_same_time(tmp_path):
    sweep = sweep_of(tmp_path, 2)
    assert run(sweep, MEET, parallel=2) == 0


def test_one_at_a_time_run_one_after_the_other(tmp_path):
    sweep = sweep_of(tmp_path, 2)
    assert run(sweep, "sys.exit((here.parent / str(number + 1)).exists())") == 0


def test_finished_jobs_are_not_run_again(tmp_path):
    sweep = sweep_of(tmp_path, 2)
    sweep.jobs[0].status = "finished"
    (tmp_path / "0").mkdir()
    assert run(sweep, "pass") == 0
    assert not list((tmp_path / "0").iterdir())


def test_a_run_that_was_begun_goes_on_and_another_command_starts_anew(tmp_path):
    sweep = sweep_of(tmp_path, 2)
    (tmp_path / "1/.hydra").mkdir(parents=True)
    (tmp_path / "1/.hydra/config.yaml").touch()
    assert command_words(sweep, sweep.jobs[0]) == ["seed=0", f"run_dir='{tmp_path}/0'"]
    assert command_words(sweep, sweep.jobs[1]) == [f"resume='{tmp_path}/1'"]
    sweep.command = "toy"
    assert command_words(sweep, sweep.jobs[1]) == ["seed=1", f"run_dir='{tmp_path}/1'"]


def test_jobs_start_where_the_sweep_was_typed(tmp_path):
    (tmp_path / "place").mkdir()
    sweep = sweep_of(tmp_path, 1)
    sweep.cwd = str(tmp_path / "place")
    run(sweep, "print(os.getcwd())")
    assert (tmp_path / "0/console.log").read_text().strip() == str(tmp_path / "place")


def test_a_sweep_whose_jobs_are_running_is_refused(tmp_path, capsys):
    sweep = sweep_of(tmp_path, 1)
    with (tmp_path / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="are running"):
            run(sweep, "pass")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "0").exists()


def test_what_a_killed_sweep_left_is_removed(tmp_path):
    for name in (".sweep.json.999999.tmp", ".sweep.csv.999999.tmp"):
        (tmp_path / name).touch()
    assert run(sweep_of(tmp_path, 1), "pass") == 0
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_sweep_is_refused_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def refuse(*words):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"cannot be locked \(No locks available"):
        run(sweep_of(tmp_path, 1), "pass")
    assert not (tmp_path / "0").exists()


def test_a_job_that_outlives_the_sweep_holds_its_lock(tmp_path):
    process, job = begun(tmp_path, "(here / 'pid').write_text(str(os.getpid())); time.sleep(60)", "pid")
    process.kill()
    process.wait()
    with pytest.raises(InputError, match="are running"):
        run(load(tmp_path), "pass")
    os.kill(job, signal.SIGKILL)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            assert run(load(tmp_path), "pass") == 0
            return
        except InputError:
            time.sleep(0.05)
    raise AssertionError("the lock outlived the job")


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.sweeping.test_run import run, sweep_of
sys.exit(run(sweep_of(Path({folder!r}), 2), {program!r}))
"""


def begun(folder, program, name):
    """The sweep in a process of its own, and the id of its first job, once that has written it."""
    root = str(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    code = PARENT.format(root=root, folder=str(folder), program=program)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (file := folder / "0" / name).is_file():
        time.sleep(0.02)
    time.sleep(0.1)
    return process, int(file.read_text())


STUBBORN = """
signal.signal(signal.SIGTERM, lambda *_: print("told once", flush=True))
signal.signal(signal.SIGINT, lambda *_: print("told twice", flush=True))
(here / "pid").write_text(str(os.getpid()))
while True: time.sleep(0.05)
"""


def test_a_signal_asks_a_second_insists_a_third_kills(tmp_path):
    process, _ = begun(tmp_path, STUBBORN, "pid")
    console = tmp_path / "0/console.log"
    for text in ("told once", "told twice"):
        process.send_signal(signal.SIGINT)
        end = time.monotonic() + 30
        while text not in console.read_text() and time.monotonic() < end:
            time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the running jobs save first" in out
    assert console.read_text().split("\n")[:2] == ["told once", "told twice"]
    assert stands(load(tmp_path)) == [("interrupted", 137), ("waiting", None)]
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"][0]["status"] == "interrupted"


def test_long_output_is_cut_to_what_was_told_and_its_end(tmp_path):
    lines = ["step 1", "shiqrun: failed", *(f"  line {n}" for n in range(30)), "  run directory: x", "  to go on: y"]
    (tmp_path / "console.log").write_text("\n".join(lines) + "\n")
    assert error_lines(tmp_path / "console.log", 1) == ["shiqrun: failed", *(f"  line {n}" for n in range(23, 30))]
