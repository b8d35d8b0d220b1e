"""Jobs as forks of a process that has imported PyTorch: real forks, their output, ends and signals."""

import os
import signal
import time

import pytest

from shiqrun.sweeping.run import can_be_forked
from shiqrun.sweeping.state import Job
from shiqrun.sweeping.warm import LOST, Warm

LONG = ["train", "trainer.max_steps=100000", "data.maps=40", "data.val_maps=4", "eval.every=0", "logger=none"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def warm(place):
    environment = os.environ | {"SHIQRUN_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    made = Warm(environment, str(place), [])
    yield made
    made.close()


def ended(job, seconds=120):
    until = time.monotonic() + seconds
    while job.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    return job.poll()


def wait_for(text, console, seconds=120):
    until = time.monotonic() + seconds
    while not (console.exists() and text in console.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    assert text in console.read_text()


def test_a_job_runs_in_the_given_directory_and_its_output_and_code_are_kept(warm, place):
    assert warm.works
    said, wrong = place / "said.log", place / "wrong.log"
    jobs = [warm.start(["--version"], said), warm.start(["train", "algo.betta=1"], wrong)]
    assert [ended(job) for job in jobs] == [0, 2]
    assert said.read_text().startswith("shiqrun ")
    assert "algo.betta: unknown key; did you mean algo.beta?" in wrong.read_text()
    short = warm.start([*LONG, "trainer.max_steps=1", "trainer.warmup_steps=0", "run_dir=short"], said)
    assert ended(short) == 0
    assert (place / "short" / "summary.json").is_file()


def test_a_job_is_a_process_group_that_saves_when_it_is_asked_to_stop_and_can_be_killed(warm, place):
    console = place / "long.log"
    job = warm.start([*LONG, "run_dir=long"], console)
    wait_for("step 1/", console)
    job.send_signal(signal.SIGTERM)
    assert ended(job) == 130
    assert (place / "long" / "checkpoints" / "last.ckpt").is_file()
    killed = warm.start(["train", "resume=long"], console)
    wait_for("resuming after step", console)
    killed.send_signal(signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL
    killed.send_signal(signal.SIGTERM)  # to nobody, whoever has its number by now


@pytest.mark.parametrize(
    ("words", "gpus", "forked"),
    [
        (["algo=shiq", "seed=1"], 0, True),
        (["algo=shiq"], 1, False),
        (["hardware=ddp", "hardware.devices=2"], 0, False),
        (["++hardware.devices=2"], 0, False),
        (["rollout=ray"], 0, False),
    ],
)
def test_jobs_on_gpus_of_several_ranks_and_with_rollouts_are_processes_of_their_own(words, gpus, forked):
    assert can_be_forked(Job(0, "0", words, {}, gpus=gpus)) is forked


def test_jobs_of_a_process_that_was_killed_are_lost_and_no_more_are_forked(warm, place):
    job = warm.start(["train", "dry_run=true", "data.maps=100000"], place / "lost.log")
    assert job.poll() is None
    os.kill(warm._process.pid, signal.SIGKILL)
    assert ended(job) == LOST
    assert not warm.works
