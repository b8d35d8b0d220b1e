import shlex
import sys

import pytest

from experiments.steps import Steps

DRY = Steps(dry_run=True)
SAYS = 'echo "$@" with $OMP_NUM_THREADS thread and HF_HUB_OFFLINE=$HF_HUB_OFFLINE'


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """Stand a shell script in the interpreter's place."""

    def place(script):
        (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    return place


def printed(capsys):
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_a_dry_run_prints_a_command_that_a_shell_reads_as_it_was_given(capsys, tmp_path):
    DRY.shiqrun("train", "data.path=a file", "rollout.temperature=[1,1]")
    DRY.unless_done(tmp_path / "run", "eval", "data=bfcl")
    assert printed(capsys) == [
        ["shiqrun", "train", "data.path=a file", "rollout.temperature=[1,1]"],
        ["shiqrun", "eval", "data=bfcl", f"run_dir={tmp_path / 'run'}"],
    ]


def test_a_run_that_has_left_its_summary_is_not_run_again(capsys, tmp_path):
    (tmp_path / "summary.json").touch()
    DRY.unless_done(tmp_path, "train", "seed=1")
    assert printed(capsys) == []


def test_a_sweep_that_was_begun_goes_on_with_as_many_jobs_as_are_asked_for(capsys, tmp_path):
    DRY.sweep(tmp_path, "seed=1,2", jobs=3)
    (tmp_path / "sweep.json").touch()
    DRY.sweep(tmp_path, "seed=1,2", jobs=4)
    assert printed(capsys) == [
        ["shiqrun", "sweep", "seed=1,2", "sweep.parallel=3", f"run_dir={tmp_path}"],
        ["shiqrun", "sweep", f"sweep.resume={tmp_path}", "sweep.parallel=4"],
    ]


@pytest.mark.parametrize("code", [2, 3, 130])
def test_a_failing_command_ends_the_study_with_its_exit_code(interpreter, tmp_path, code):
    interpreter(f"exit {code}")
    for step in (
        lambda: Steps().shiqrun("train"),
        lambda: Steps().python("experiments.hh_answers"),
        lambda: Steps().unless_done(tmp_path / "run", "train"),
        lambda: Steps().sweep(tmp_path / "grid", "seed=1,2", jobs=1),
    ):
        with pytest.raises(SystemExit) as ended:
            step()
        assert ended.value.code == code


def test_a_study_goes_on_after_a_sweep_of_which_a_job_failed_but_after_no_other_failure(interpreter, tmp_path):
    interpreter("exit 1")
    Steps().sweep(tmp_path / "grid", "seed=1,2", jobs=1)
    with pytest.raises(SystemExit):
        Steps().shiqrun("train")


def test_commands_run_offline_and_on_the_threads_of_the_study_unless_the_environment_says_otherwise(
    interpreter, monkeypatch, capfd
):
    interpreter(SAYS)
    for name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    Steps(threads=1).shiqrun("train", "seed=1")
    assert "-m shiqrun train seed=1 with 1 thread and HF_HUB_OFFLINE=1\n" in capfd.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    Steps(threads=1).python("experiments.hh_answers", "scored.jsonl")
    assert "-m experiments.hh_answers scored.jsonl with 3 thread" in capfd.readouterr().out


@pytest.mark.slow
def test_a_sweep_with_a_job_that_diverges_lets_the_study_go_on(workplace):
    words = ("data.maps=20", "data.val_maps=2", "model.hidden_size=16", "model.num_layers=1", "logger=none")
    fails = ("trainer.learning_rate=1e-3,1e30", "trainer.max_steps=3", "eval.every=0")
    Steps(threads=1).sweep(workplace / "grid", *words, *fails, jobs=1)
    assert len([*workplace.glob("grid/*/summary.json")]) == 1
