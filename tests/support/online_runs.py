"""Small runs that sample while they learn, their processes, and a recount of what they left in `experience`."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.command_line import command, finished, summary

ROOT = Path(__file__).resolve().parents[2]
N = 8  # trajectories that a step samples
RUN = (
    "algo=copg",
    "algo.reference=frozen",
    "data=programs",
    "data.problems=200",
    "data.val_problems=16",
    "model=tiny",
    "model.hidden_size=32",
    "model.num_layers=2",
    "logger=none",
    "eval.every=1000",
    "eval.max_prompts=4",
    "eval.max_new_tokens=8",
    "trainer.batch_size=16",
    "trainer.log_every=1",
    "rollout.offline=0.5",
    "rollout.max_new_tokens=8",
    "rollout.samples_per_prompt=2",
    "rollout.model_update_interval=3",
)
RAY = ("rollout=ray", "rollout.waiting=16", "rollout.batch_size=8", "rollout.actor_cpus=0.5")


BUSY = {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
"""Ray's workers step back behind all other processes otherwise, and tests share the machine."""


def begin(run_dir, *words, reward="programs"):
    """A run in a process of its own, in a process group of its own."""
    return command("train", *RUN, f"eval.reward={reward}", f"run_dir={run_dir}", *words, **BUSY)


def resumed(run_dir):
    """Goes on to the end."""
    code, out = finished(command("train", f"resume={run_dir}", **BUSY), 400)
    assert code == 0, out
    return out


def steps_done(run_dir):
    """Number of steps that the ledger of a run says are done; a torn last line is none."""
    file = run_dir / "experience" / "LEASES"
    return sum('"done"' in line for line in file.read_text().split("\n")[:-1]) if file.is_file() else 0


def wait_for_steps(run_dir, number, process, seconds=240):
    """Returns once so many steps of a run are done."""
    end = time.monotonic() + seconds
    while steps_done(run_dir) < number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{steps_done(run_dir)} steps done"
        time.sleep(0.01)


def below(pid):
    """All processes that a process has started, by themselves or others."""
    psutil = pytest.importorskip("psutil", reason="looks at processes")
    return psutil.Process(pid).children(recursive=True)


def called(name, processes):
    """Those of an actor's class."""
    return [p for p in processes if p.is_running() and any(f"ray::{name}" in word for word in p.cmdline())]


def all_gone(processes, seconds=30):
    """Whether they end within some time."""
    psutil = pytest.importorskip("psutil", reason="looks at processes")
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def kill(processes):
    """At once."""
    assert processes
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)


def read_index(folder):
    """The lines of INDEX and LEASES that are whole."""
    return [[json.loads(line) for line in (folder / name).read_text().split("\n")[:-1]] for name in ("INDEX", "LEASES")]


def recounted(run_dir):
    """The numbers of `summary.json`, from the files alone."""
    folder = run_dir / "experience"
    index, leases = read_index(folder)
    uids = Counter(u for shard in index for u in pq.read_table(folder / shard["name"])["uid"].to_pylist())
    done = {row["done"] for row in leases if "done" in row}
    stale = [u for row in leases for u in row.get("stale", [])]
    by_step = {row["step"]: row["uids"] for row in leases if "uids" in row}
    given = [u for of_step in by_step.values() for u in of_step]
    return {
        "accepted": len(uids),
        "trained": sum(len(of_step) for step, of_step in by_step.items() if step in done),
        "leased": sum(len(of_step) for step, of_step in by_step.items() if step not in done),
        "stale": len(stale),
        "waiting": len(uids.keys() - {*given, *stale}),
        "lost": len({*given, *stale} - uids.keys()),
        "duplicated": sum(n > 1 for n in uids.values()) + sum(n > 1 for n in Counter(given + stale).values()),
    }, by_step


def expect_all_there(run_dir, steps):
    """That a finished run has lost nothing, trained on nothing twice, and given every step what it asked for."""
    counts, by_step = recounted(run_dir)
    told = {k.removeprefix("rollout/"): v for k, v in summary(run_dir).items() if k.startswith("rollout/")}
    for found in (told, counts):
        assert found["lost"] == found["duplicated"] == found["leased"] == 0
        assert found["accepted"] == found["trained"] + found["waiting"] + found["stale"]
    assert (told["trained"], told["stale"]) == (counts["trained"], counts["stale"])
    late = counts["accepted"] - told["accepted"]  # actors sample until they are stopped, after the numbers are taken
    assert 0 <= late <= (16 if "rollout/actor_restarts" in summary(run_dir) else 0)
    assert counts["trained"] == steps * N
    assert {step: len(uids) for step, uids in by_step.items()} == dict.fromkeys(range(1, steps + 1), N)
    return told
