"""Made-up trajectories, and what a child process does with a buffer before it is killed."""

import multiprocessing
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.store.shards import Shards
from shiqrun.rollout.trajectory import SampledTrajectory


def made(number, *, worker="w-0", incarnation=0, each=1, version=0, actions=3, answer="yes", **columns):
    """The trajectory of that number; `each` in a row are a group."""
    rng = np.random.default_rng([number, incarnation])
    group = f"{worker}-{incarnation}-of-{number // each}"
    values = {
        "uid": f"{worker}-{incarnation}-{number}",
        "group": group,
        "prompt_id": f"prompt {number // each}",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {group}"}],
        "completion": f"answer {number}, “{rng.integers(1000)}”",
        "answer": answer,
        "input_ids": rng.integers(0, 1000, 4 + actions).astype(np.int32),
        "start": 4,
        "behaviour_logp": -rng.random(actions).astype(np.float32),
        "policy_logp": -rng.random(actions).astype(np.float32),
        "reward": float(rng.integers(2)) - 1,
        "ended": bool(number % 3),
        "version": version,
        "temperature": float(rng.random()),
        "top_p": 0.95,
        "source": "online",
        "time": 1.7e9 + number / 7,
    }
    return SampledTrajectory(**values | columns)


def several(first, last, **options):
    """Those of the numbers from `first` to `last - 1`."""
    return [made(number, **options) for number in range(first, last)]


def uids(trajectories):
    return [t.uid for t in trajectories]


def same(one, other):
    """Whether two trajectories are equal in every column, arrays with their types."""
    a, b = vars(one), vars(other)
    arrays = ("input_ids", "behaviour_logp", "policy_logp")
    equal = all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in arrays)
    return equal and all(a[k] == b[k] and type(a[k]) is type(b[k]) for k in a if k not in arrays)


def forked(target, *arguments):
    """(process, pipe) of a child that runs `target(*arguments, pipe)`; imports are done once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "pandas", "tests.rollout.experience"])  # Arrow imports pandas
    reader, writer = context.Pipe()
    child = context.Process(target=target, args=(*arguments, writer), daemon=True)
    child.start()
    writer.close()
    return child, reader


def keep_working(directory, incarnation, said):
    """Puts, leases and acknowledges until killed, and says in a pipe what has returned."""
    say = partial(os.write, said.fileno())
    buffer = Buffer(directory, after=None)
    leases = list(buffer._ledger.leases)
    step, number = max(leases, default=0), 0
    while True:
        batch = several(number, number + 6, incarnation=incarnation, each=2)
        buffer.put(batch)
        number += 6
        say("".join(f"put {uid}\n" for uid in uids(batch)).encode())
        step += 1
        got = buffer.lease(step, 4)
        if got is not None:
            say("".join(f"lease {step} {uid}\n" for uid in uids(got)).encode())
            buffer.acknowledge(step)
            say(f"done {step}\n".encode())


def hold(directory, said):
    """Holds the directory until killed."""
    held = Shards(directory)
    os.write(said.fileno(), b"held\n")
    os.read(os.pipe()[0], 1)
    held.close()


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc says which file is synced")


class Disk:
    """What would be left of a directory if the machine lost its power: synced contents under synced names."""

    def __init__(self, directory, monkeypatch):
        self.directory, self.names, self.contents, self.states = directory, {}, {}, []
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self.sync)

    def sync(self, number):
        self._sync(number)
        place = Path(os.readlink(f"/proc/self/fd/{number}"))
        if place == self.directory:
            self.names = {entry.name: entry.inode() for entry in os.scandir(place)}
        elif place.parent == self.directory:
            self.contents[os.fstat(number).st_ino] = place.read_bytes()
        else:
            return
        self.states.append({name: self.contents.get(inode, b"") for name, inode in self.names.items()})


def restored(directory, state):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in state.items():
        (directory / name).write_bytes(content)
    return directory


NONE = {"accepted": 0, "trained": 0, "leased": 0, "waiting": 0, "stale": 0, "lost": 0, "duplicated": 0}


def counts(**options):
    """The counts of a buffer: zero unless given."""
    return NONE | options
