"""The scripts of docs/clusters.md with fewer processes: real torchrun and submitit, stand-ins for SLURM's programs."""

import re
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.clusters import free_port, slurm_in_path, without_cluster
from tests.support.command_line import SMALL, finished, largest_difference, start, started_anew, summary, wait_for_rows

PAGE = Path(__file__).parents[2] / "docs/clusters.md"
LONG = ("trainer.max_steps=30", "trainer.checkpoint_every=4", "trainer.log_every=2", "hardware.accelerator=cpu")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_home")]


@pytest.fixture(scope="module")
def scripts(home):
    """The scripts of the page, with one process on each node and this machine's address."""
    port = free_port()
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if found := re.search(r"^# file: (\S+)$", block, re.MULTILINE):
            text = re.sub(r"(nproc-per-node|ntasks-per-node|hardware.devices)=4", r"\1=1", block)
            text = text.replace("first-host:29500", f"127.0.0.1:{port}").replace(":29500", f":{port}")
            (home / found[1]).write_text(text)
    return home


@pytest.fixture(autouse=True)
def slurm(home, monkeypatch):
    without_cluster(monkeypatch)
    return slurm_in_path(monkeypatch, home)


@pytest.fixture(scope="module")
def whole(home):
    """The run of two ranks that nothing interrupted, started by one command."""
    code, out = finished(start(f"run_dir={home}/whole", *LONG, "hardware=ddp", "hardware.devices=2"))
    assert code == 0, out
    return home / "whole"


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def test_two_machines(scripts, whole):
    words = ["bash", "two_machines.sh", *SMALL, *LONG, "hardware=ddp", "run_dir=machines"]
    nodes = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    ends = [finished(node) for node in nodes]
    assert [code for code, _ in ends] == [0, 0], ends
    assert sum(out.count("step 30/30") for _, out in ends) == 1
    assert largest_difference(whole, scripts / "machines") == 0


@pytest.mark.parametrize("script", ["train.sbatch", "torchrun.sbatch"])
def test_a_job_that_is_warned_runs_again_and_ends_with_the_same_bits(scripts, whole, slurm, script):
    timed = f"run_dir=runs/{script}/${{now:%Y-%m-%d}}_${{now:%H-%M-%S}}"
    words = ["sbatch", "--output=job.out", script, "logger=wandb", *SMALL[1:], *LONG, "hardware=ddp", timed]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    job = re.fullmatch(r"Submitted batch job (\d+)\n", said)[1]
    (rows,) = wait_for(lambda: list((scripts / "runs" / script).glob("*/metrics.csv")))
    run = rows.parent
    wait_for_rows(run, 3, _Job(slurm, job))
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait_for(lambda: (slurm / f"{job}.state").read_text() != "RUNNING")
    out = (scripts / "job.out").read_text()
    assert (slurm / f"{job}.state").read_text() == "COMPLETED", out
    assert f"SLURM job {job} is requeued" in out
    assert f"SLURM runs this job again: going on with {run}" in out
    assert largest_difference(whole, run) == 0
    sessions = list((run / "wandb").glob("offline-run-*"))
    assert (len(sessions), len({session.name.rpartition("-")[2] for session in sessions})) == (2, 1), sessions
    (scripts / "job.out").unlink()


class _Job:
    """A job as `wait_for_rows` asks for it."""

    def __init__(self, state, job):
        self.file = state / f"{job}.state"

    def poll(self):
        return None if self.file.read_text() == "RUNNING" else 1

    def communicate(self, timeout):
        return (Path("job.out").read_text(), None)


@pytest.mark.skipif(not find_spec("submitit"), reason="submitit is not installed (extra submitit)")
def test_submitit_starts_a_run_on_two_nodes_and_has_it_run_again(scripts, slurm):
    words = [
        "sweep",
        *SMALL,
        *LONG,
        "hardware=ddp",
        "hardware.devices=1",
        "hardware.num_nodes=2",
        "seed=0",
        "run_dir=grid",
    ]
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=1"]
    process = started_anew(*words, *launcher)
    end = time.monotonic() + 100
    while not (found := [*(scripts / "grid").glob("0_*/metrics.csv")]) and time.monotonic() < end:
        time.sleep(0.05)
    run = found[0].parent
    wait_for_rows(run, 3, process)
    job = max(file.name.partition(".")[0] for file in slurm.glob("*.srun"))  # the latest
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    code, out = finished(process)
    assert code == 0, out
    assert summary(run)["steps"] == 30
