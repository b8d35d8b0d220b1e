"""Simulated clusters: processes as torchrun and srun start them, and SLURM's programs as executables in PATH.

Nodes are groups of processes of this machine. What real SLURM does beyond that (allocations, limits, other hosts) is
not shown.
"""

import contextlib
import os
import socket
import stat
import sys
from pathlib import Path

from tests.support.command_line import SMALL
from tests.support.forks import Forked

FAKE = Path(__file__).parent / "fake_slurm.py"


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def without_cluster(monkeypatch) -> None:
    """Removes the variables of any cluster from the environment of the test."""
    for name in [n for n in os.environ if n.startswith(("SLURM_", "TORCHELASTIC", "SUBMITIT"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def torchrun_ranks(monkeypatch, words, *, nodes: int = 2, each: int = 1, missing: tuple[int, ...] = ()) -> list[Forked]:
    """The processes of `shiqrun train` on so many nodes with the variables that torchrun sets."""
    port, there = free_port(), []
    for rank in range(nodes * each):
        values = {"RANK": rank, "WORLD_SIZE": nodes * each, "LOCAL_RANK": rank % each, "LOCAL_WORLD_SIZE": each}
        values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        if rank not in missing:
            there.append(Forked(("train", *SMALL, *words)))
    return there


def slurm_in_path(monkeypatch, folder: Path) -> Path:
    """Puts stand-ins for SLURM's programs into PATH, with torchrun and shiqrun; returns the folder of their state."""
    programs, state = folder / "slurm_bin", folder / "slurm_state"
    programs.mkdir(exist_ok=True)
    state.mkdir(exist_ok=True)
    called = {name: f"{FAKE} {name}" for name in ("sbatch", "srun", "scontrol", "scancel", "sacct")}
    called |= {"torchrun": "-m torch.distributed.run", "shiqrun": "-m shiqrun"}  # these are real
    for name, words in called.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state
