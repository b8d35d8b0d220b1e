"""A `Place` says which rank of a run this process is, as the variables of torchrun, srun or shiqrun itself say it."""

import os
import socket
import time
from typing import NamedTuple

from omegaconf import DictConfig

from shiqrun.errors import InputError

JOIN_SECONDS = "SHIQRUN_JOIN_SECONDS"
"""Environment variable with the seconds in which all ranks must arrive."""
FIRST_PORT, PORTS = 15000, 10000
"""Where the ranks of a SLURM job meet, unless MASTER_PORT is set: a port that the job's number gives."""


class Unplaced(InputError):
    """`Unplaced` says that this process cannot know or reach rank 0, which prints the errors of all others."""


class Place(NamedTuple):
    """A `Place` is a rank of a run.

    Attributes:
        rank: its number among all ranks, from 0.
        world: number of ranks.
        local_rank: its number among the ranks of its node, from 0.
        started_by: torchrun or srun; empty for a process that a person started.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    started_by: str = ""

    @property
    def host(self) -> str:
        """Return the name of this machine."""
        return socket.gethostname()


def place() -> Place:
    """Return which rank this process is.

    The batch script of a SLURM job has most of srun's variables too; those of a step are srun's own.

    Raises:
        Unplaced: a variable is no number.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Place(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", 0), "torchrun")
    if _number("SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in os.environ:
        return Place(_number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_LOCALID", 0), "srun")
    return Place()


def meeting_point(place: Place) -> tuple[str, int]:
    """Return host and port of the store where the ranks meet.

    Raises:
        Unplaced: the variables that say it are missing.
    """
    if place.started_by == "srun":
        first = _first_host(os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", ""))
        job = _number("SLURM_JOB_ID", 0) * 100 + _number("SLURM_STEP_ID", 0)
        return os.environ.get("MASTER_ADDR") or first, _number("MASTER_PORT", FIRST_PORT + job % PORTS)
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise Unplaced(
            "RANK and WORLD_SIZE are set, but MASTER_ADDR or MASTER_PORT is not, where the ranks meet; start the "
            "command by torchrun or srun, or unset RANK and WORLD_SIZE"
        )
    return os.environ["MASTER_ADDR"], _number("MASTER_PORT")


def join_seconds() -> float:
    """Return the seconds in which all ranks must arrive.

    Raises:
        InputError: the variable is no positive number.
    """
    text = os.environ.get(JOIN_SECONDS, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"{JOIN_SECONDS}={text}: expected a positive number of seconds")
    return seconds


def await_port(host: str, port: int) -> None:
    """Wait until rank 0 listens.

    Raises:
        Unplaced: it does not within the time for ranks to arrive.
    """
    end = time.monotonic() + join_seconds()
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise Unplaced(
                    f"rank 0 did not arrive within {join_seconds():g} s: nobody answers at {host}:{port} "
                    f"({error.strerror or error}); see the output of the first node, or raise {JOIN_SECONDS}"
                ) from error
            time.sleep(0.2)


def processes_of(config: DictConfig) -> int:
    """Return the number of ranks that the settings of a run ask for, over all nodes."""
    return int(config.hardware.get("devices", 1)) * int(config.hardware.get("num_nodes", 1))


def expect_processes(config: DictConfig, here: Place) -> None:
    """Check that as many processes were started as the settings ask for.

    Raises:
        InputError: they were not.
    """
    devices, nodes = int(config.hardware.get("devices", 1)), int(config.hardware.get("num_nodes", 1))
    wanted = devices * nodes
    asked = f"hardware.devices={devices} on hardware.num_nodes={nodes}"
    if here.started_by and wanted != here.world:
        how = {"torchrun": "--nnodes and --nproc-per-node", "srun": "--nodes and --ntasks-per-node"}[here.started_by]
        raise InputError(
            f"{asked} needs {wanted} processes, but {here.started_by} started {here.world}; "
            f"make the settings those of {here.started_by}: {how}"
        )
    if not here.started_by and nodes > 1:
        raise InputError(
            f"hardware.num_nodes={nodes}: one command starts the processes of one machine; start it on each node by "
            "torchrun or srun (docs/clusters.md)"
        )


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise Unplaced(f"the environment variable {name}={text!r}: expected a number")
    return int(text)


def _first_host(nodes: str) -> str:
    """Return the first host of a list as SLURM writes it: `node[07-09,12],other` gives `node07`."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return nodes.split(",", maxsplit=1)[0] or "127.0.0.1"
    inner, _, suffix = rest.partition("]")
    return name + inner.split(",")[0].split("-")[0] + suffix.split(",")[0]
