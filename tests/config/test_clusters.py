"""One run on several nodes, simulated on one machine: one directory, and one line where something is wrong."""

import re
import signal
import time

import pytest
import torch

from shiqrun.cli import main
from tests.support.clusters import slurm_in_path, torchrun_ranks, without_cluster
from tests.support.command_line import (
    finished,
    largest_difference,
    metrics,
    start,
    timeless,
    train,
    wait_for_rows,
)

SHORT = ("trainer.max_steps=6", "trainer.batch_size=7", "data.per_map=1", "data.val_maps=3")
ON_CPU = ("hardware=ddp", "hardware.accelerator=cpu")
LONG = ("trainer.max_steps=30", "trainer.checkpoint_every=4", "trainer.log_every=2")


@pytest.fixture(autouse=True)
def no_cluster(at_home, monkeypatch):
    without_cluster(monkeypatch)


def fails(processes, code):
    """The one line of the first process; all end with that exit code, and the others say nothing."""
    first, *others = [finished(process) for process in processes]
    assert [first[0], *(c for c, _ in others)] == [code] * len(processes), (first, others)
    assert not any(out for _, out in others), others
    lines = [line for line in first[1].splitlines() if line.startswith("shiqrun:")]
    assert len(lines) == 1, first[1]
    return lines[0]


@pytest.mark.parametrize("hardware", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_nodes_make_one_run_with_the_numbers_of_one_process(home, monkeypatch, hardware):
    assert train(f"run_dir=one_{hardware}", *SHORT) == 0
    words = (*SHORT, f"hardware={hardware}", "hardware.accelerator=cpu", "hardware.devices=1", "hardware.num_nodes=2")
    ends = [finished(p) for p in torchrun_ranks(monkeypatch, words)]
    assert [code for code, _ in ends] == [0, 0], ends
    assert ends[1][1] == "", "the second node's process speaks"
    (run,) = (home / "outputs/shiq-treasure").iterdir()
    run.rename(home / f"two_{hardware}")
    assert largest_difference(home / f"one_{hardware}", home / f"two_{hardware}") < 5e-5
    for a, b in zip(*(timeless(metrics(home / f"{n}_{hardware}")) for n in ("one", "two")), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


class TestAWrongStart:
    def test_of_fewer_processes_than_the_settings_need(self, home, monkeypatch):
        processes = torchrun_ranks(monkeypatch, [*ON_CPU, "hardware.devices=4", "run_dir=few"])
        assert fails(processes, 2) == (
            "shiqrun: error: hardware.devices=4 on hardware.num_nodes=1 needs 4 processes, but torchrun started 2; "
            "make the settings those of torchrun: --nnodes and --nproc-per-node"
        )
        assert not (home / "few").exists()

    def test_with_a_wrong_setting_is_said_once(self, monkeypatch):
        line = fails(torchrun_ranks(monkeypatch, ["algo.beta=-1"]), 2)
        assert line.startswith("shiqrun: error: algo.beta: met -1")

    def test_of_a_sweep(self, monkeypatch):
        line = fails(torchrun_ranks(monkeypatch, ["-m", "seed=1,2"]), 2)
        assert line == "shiqrun: error: torchrun started 2 processes, but a sweep is started by one"

    def test_of_a_command_that_has_no_ranks(self, monkeypatch, capsys):
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
            monkeypatch.setenv(name, value)
        assert main(["eval", "data=treasure"]) == 2
        said = capsys.readouterr().err
        assert said == "shiqrun: error: torchrun started 2 processes, but shiqrun eval runs in one\n"

    def test_of_several_nodes_by_one_command(self, capsys):
        assert train(*ON_CPU, "hardware.num_nodes=2", "run_dir=alone") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "hardware.num_nodes=2: one command starts the processes of one machine; start it on each node" in said

    def test_of_more_processes_than_gpus(self, home, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert train("hardware=fsdp", "hardware.devices=4", "run_dir=many") == 2
        said = capsys.readouterr().err
        assert said == (
            "shiqrun: error: hardware.devices=4, but this machine has 2 GPUs; lower it, or set hardware=cpu\n"
        )
        assert not (home / "many").exists()

    def test_without_a_node_names_its_ranks(self, monkeypatch):
        monkeypatch.setenv("SHIQRUN_JOIN_SECONDS", "1")
        words = [*ON_CPU, "hardware.devices=2", "hardware.num_nodes=2"]
        line = fails(torchrun_ranks(monkeypatch, words, each=2, missing=(2, 3)), 2)
        assert line.startswith("shiqrun: error: 2 of 4 ranks did not arrive within 1 s: 2, 3 (there: those on ")

    def test_without_the_first_node_is_said_by_each_other(self, monkeypatch):
        monkeypatch.setenv("SHIQRUN_JOIN_SECONDS", "1")
        (process,) = torchrun_ranks(monkeypatch, ON_CPU, missing=(0,))
        code, out = finished(process)
        assert code == 2
        assert re.fullmatch(
            r"shiqrun: error: rank 0 did not arrive within 1 s: nobody answers at 127.0.0.1:\d+ "
            r"\(Connection refused\); see the output of the first node, or raise SHIQRUN_JOIN_SECONDS\n",
            out,
        )


# ------------------------------------------------------------------ SLURM
def interrupted_by(number, process, run_dir, rows=3):
    """Output of a run that gets a signal after so many logged rows."""
    wait_for_rows(run_dir, rows, process)
    process.send_signal(number)
    code, out = finished(process)
    assert code == 130, out
    return out


def the_run(home, name="shiq-treasure"):
    """The one run directory that is named by the time, once it is there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = [folder for folder in (home / "outputs" / name).glob("*") if (folder / "metrics.csv").exists()]
        if found:
            assert len(found) == 1
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no run directory")


def test_a_job_that_slurm_warns_saves_after_the_step_and_goes_on_in_its_directory(home, monkeypatch):
    assert train("run_dir=whole", *LONG) == 0
    state = slurm_in_path(monkeypatch, home)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    process = start(*LONG)
    run = the_run(home)
    out = interrupted_by(signal.SIGUSR1, process, run)
    assert re.search(r"interrupted: stopped after step \d+; the checkpoint is saved", out)
    assert out.endswith("shiqrun: SLURM job 42 is requeued\n")
    assert (state / "42.requeue").exists()
    assert not list(run.glob("**/hpc_ckpt*"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code, out = finished(start(*LONG))
    assert code == 0, out
    assert f"SLURM runs this job again: going on with {run}" in out
    assert the_run(home) == run
    assert largest_difference(home / "whole", run) == 0
    assert finished(start(*LONG))[0] == 0, "a script that is requeued later passes over it"
    monkeypatch.setenv("SLURM_JOB_ID", "43")
    code, out = finished(start(*LONG, "trainer.max_steps=1"))
    assert code == 0
    assert "SLURM runs this job again" not in out, "it is another job's"


def test_a_job_that_is_told_to_end_is_not_requeued(home, monkeypatch):
    state = slurm_in_path(monkeypatch, home)
    monkeypatch.setenv("SLURM_JOB_ID", "51")
    out = interrupted_by(signal.SIGTERM, start(*LONG, "run_dir=told"), home / "told")
    assert "requeued" not in out
    assert not (state / "51.requeue").exists()


def test_a_job_that_cannot_be_requeued_says_so(home, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "52")
    monkeypatch.setenv("PATH", str(home))
    out = interrupted_by(signal.SIGUSR1, start(*LONG, "run_dir=stays"), home / "stays")
    assert out.endswith("shiqrun: SLURM job 52 is not requeued: scontrol: No such file or directory\n")


def test_a_signal_to_one_rank_stops_all_after_the_same_step(home, monkeypatch):
    words = (*LONG, *ON_CPU, "hardware.devices=1", "hardware.num_nodes=2", "run_dir=together")
    first, second = torchrun_ranks(monkeypatch, words)
    wait_for_rows(home / "together", 3, first)
    second.send_signal(signal.SIGTERM)
    ends = [finished(process) for process in (first, second)]
    assert [code for code, _ in ends] == [130, 130], ends
    assert "the checkpoint is saved" in ends[0][1]
    assert ends[1][1] == ""
