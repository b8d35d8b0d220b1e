"""What a Ray cluster leaves when its trainer ends, is killed, or has joined the cluster of others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shiqrun.rollout.ray.watchdog import MARK, Watchdog, processes_of
from tests.support.command_line import finished
from tests.support.online_runs import RAY, all_gone, begin, below, wait_for_steps

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")


def sleeping(**options):
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **options)


def running(pid):
    """Whether a process runs; one that has ended and is not reaped yet has no command line."""
    place = Path(f"/proc/{pid}/cmdline")
    return place.exists() and bool(place.read_bytes())


def clusters(folder):
    return [p for p in folder.iterdir() if p.name.startswith("shiqrun-")]


@pytest.mark.parametrize("starts", ["at once", "after its owner's end"])
def test_marked_processes_and_what_they_started_end_with_their_owner_and_no_others(starts, monkeypatch):
    """The owner is killed while a forked child of it still holds the pipe, and perhaps before the watchdog runs."""
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    stop = "" if starts == "at once" else "os.kill(dog._process.pid, signal.SIGSTOP)\n"
    program = (
        "import os, signal, subprocess, sys, time\n"
        "from shiqrun.rollout.ray.watchdog import Watchdog\n"
        f"dog = Watchdog()\n{stop}"
        "nap = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "shell = [sys.executable, '-c', f'import subprocess; subprocess.run({nap})']\n"
        "with dog.marks():\n"
        "    marked = subprocess.Popen(shell, start_new_session=True)\n"
        "other = subprocess.Popen(nap)\n"
        "forked = os.fork() or time.sleep(600)\n"
        "(dog.directory / 'session').mkdir()\n"
        "print(dog.directory, marked.pid, other.pid, forked, dog._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        directory, *pids = owner.stdout.readline().split()
        marked, other, forked, dog = map(int, pids)
        try:
            end = time.monotonic() + 60
            while len(processes_of(directory)) < 2:
                assert time.monotonic() < end
            owner.kill()
            owner.wait()
            os.kill(dog, signal.SIGCONT)
            while processes_of(directory) or Path(directory).exists():
                assert time.monotonic() < end
                time.sleep(0.1)
            assert not running(marked)
            assert running(other)
        finally:
            for pid in (other, forked):
                os.kill(pid, signal.SIGKILL)


def test_a_normal_end_waits_until_the_directory_is_gone(tmp_path, monkeypatch):
    short = Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    dog = Watchdog()
    assert dog.directory.parent == short
    with dog.marks():
        child = sleeping()
    assert MARK not in os.environ
    dog.close()
    assert not dog.directory.exists()
    assert child.wait(1) == -signal.SIGTERM
    dog.close()


def test_a_deep_directory_for_temporary_files_is_not_taken(tmp_path, monkeypatch):
    deep = tmp_path / ("long" * 10)
    deep.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(deep))
    dog = Watchdog()
    dog.close()
    assert dog.directory.parent == Path("/tmp")


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["killed", "normally"])
def test_nothing_of_ray_outlives_the_trainer(tmp_path, ends):
    pytest.importorskip("ray", reason="Ray is not installed")
    there = set(clusters(Path("/tmp")))
    steps = 2000 if ends == "killed" else 4
    process = begin(tmp_path / "run", *RAY, f"trainer.max_steps={steps}")
    wait_for_steps(tmp_path / "run", 2, process)
    started = below(process.pid)
    assert len(started) > 5
    (cluster,) = set(clusters(Path("/tmp"))) - there
    if ends == "killed":
        process.send_signal(signal.SIGKILL)
        process.communicate()
    else:
        code, out = finished(process, 200)
        assert code == 0, out
    assert all_gone(started, 15 if ends == "killed" else 0.5)
    assert not cluster.exists()


@pytest.mark.slow
def test_a_cluster_of_others_is_left_as_it_was(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    program = (
        "import ray, sys\n"
        "ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.readline()\n"
        "print(len(ray.nodes()), flush=True)\n"
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", program], text=True, env=environment, **streams) as other:
        address = other.stdout.readline().strip()
        process = begin(tmp_path / "run", *RAY, f"rollout.address='{address}'", "trainer.max_steps=3")
        code, out = finished(process, 200)
        assert code == 0, out
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline().strip() == "1"
