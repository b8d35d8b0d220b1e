"""All ranks of a run are there before anything is prepared, in one process group, and end together.

Where torchrun or srun has started several processes, they meet, and rank 0 alone reads the command line; else the first
process starts the others of its machine. The first failure of any rank ends all: rank 0 prints it, and all exit with
its code.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from shiqrun.config.crew import FAILED, INTERRUPTED, WRONG_INPUT, Crew, Failure, RankFailed
from shiqrun.config.places import Place, await_port, expect_processes, meeting_point, place, processes_of
from shiqrun.config.process import environment, leave_process_group
from shiqrun.console import quiet_other_ranks, waiting
from shiqrun.errors import InputError, Interrupted
from shiqrun.sandbox.kernel import die_with_parent

GROUP_TIMEOUT = timedelta(hours=2)
"""How long ranks wait for one that lives, as for rank 0 while it saves a large policy; a dead one is noticed sooner."""
PARENT = "SHIQRUN_PARENT"
"""Environment variable with the process id of the rank that started this one."""
LOCALHOST = "127.0.0.1"
_met: list[Crew] = []
"""The crew that this process has met, since torchrun or srun started it."""


@contextmanager
def met(here: Place, say: Callable[[Failure], None]) -> Iterator[Crew]:
    """Meet the other ranks that torchrun or srun has started, before the command line is read.

    Raises:
        RankFailed: a rank failed, or did not arrive.
        Unplaced: rank 0 did not arrive.
    """
    crew = _meet(here, say)
    _met.append(crew)
    try:
        with _failing(crew, _failure_of_words):
            crew.arrive()
            yield crew
    finally:
        _met.clear()
        crew.leave()


@contextmanager
def all_ranks(
    config: DictConfig,
    folder: Path,
    command: str,
    *,
    say: Callable[[Failure], None],
    failure_of: Callable[[BaseException], Failure],
) -> Iterator[None]:
    """Have all ranks of a run inside the block, in one process group; start those that nobody has started.

    Args:
        config: of the run.
        folder: its directory.
        command: which runs it.
        say: prints the first failure, on rank 0.
        failure_of: says how an error ends the command.

    Raises:
        InputError: other processes are there than the settings ask for.
        RankFailed: a rank failed, this one or another; rank 0 has printed it.
    """
    here = place()
    expect_processes(config, here)
    if processes_of(config) == 1:
        yield
        return
    crew = _met[0] if _met else _meet(here, say) if here.started_by else _start(config, command, say)
    try:
        with _failing(crew, failure_of), environment(**_variables(crew, int(config.hardware.get("num_nodes", 1)))):
            quiet_other_ranks()
            _gather(crew, folder)
            _join_group(crew, config.hardware.accelerator)
            yield
    finally:
        leave_process_group()
        if not _met:
            crew.leave()


@contextmanager
def _failing(crew: Crew, failure_of: Callable[[BaseException], Failure]) -> Iterator[None]:
    """Have an error inside the block end all ranks.

    Raises:
        RankFailed: the first failure of any rank.
    """
    try:
        yield
    except RankFailed as failed:
        raise crew.fail(failed.failure) from failed.__cause__
    except BaseException as error:
        stopped = any(isinstance(e, Interrupted) for e in (error, error.__cause__, error.__context__))
        if not stopped:
            raise crew.fail(failure_of(error)) from error
        crew.code = INTERRUPTED  # all ranks stop after the same step
        raise


def is_met() -> bool:
    """Return whether this process has met the other ranks that torchrun or srun has started."""
    return bool(_met)


def _failure_of_words(error: BaseException) -> Failure:
    """Return how an error before or after the run itself ends all ranks."""
    if isinstance(error, InputError):
        return Failure(WRONG_INPUT, f"error: {error}")
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, "")
    return Failure(FAILED, "failed\n" + "".join(traceback.format_exception(error)))


def _start(config: DictConfig, command: str, say: Callable[[Failure], None]) -> Crew:
    """Start the further ranks of this machine, which meet at this process.

    Raises:
        InputError: they are more than there are GPUs.
    """
    import torch

    world = processes_of(config)
    if config.hardware.accelerator != "cpu" and world > (gpus := torch.cuda.device_count()) > 0:
        raise InputError(f"hardware.devices={world}, but this machine has {gpus} GPUs; lower it, or set hardware=cpu")
    store = torch.distributed.TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=GROUP_TIMEOUT)
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": LOCALHOST, "MASTER_PORT": str(store.port)}
    shared |= {PARENT: str(os.getpid())}
    if "OMP_NUM_THREADS" not in os.environ:  # else the ranks' threads starve each other
        threads = max(1, len(os.sched_getaffinity(0)) // world)
        shared["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    os.environ |= shared
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "shiqrun", command],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which tells the others
        )
        for rank in range(1, world)
    ]
    return Crew(store, Place(0, world, 0), say, children)


def end_with_parent() -> None:
    """Have the kernel end this process with the rank that started it, if one did."""
    if PARENT in os.environ:
        die_with_parent(signal.SIGKILL)
        if os.getppid() != int(os.environ[PARENT]):
            os._exit(1)


def _meet(here: Place, say: Callable[[Failure], None]) -> Crew:
    """Return the crew of a process that another one has started.

    Raises:
        Unplaced: rank 0 did not arrive.
    """
    host, port = meeting_point(here)
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = here.rank == 0 and not agent
    if not serves:
        await_port(host, port)
    import torch

    options: dict[str, Any] = {"is_master": serves, "wait_for_workers": False, "timeout": GROUP_TIMEOUT}
    store = torch.distributed.TCPStore(host, port, **options)
    return Crew(store, here, say)


def _variables(crew: Crew, nodes: int) -> dict[str, str]:
    """Return the environment variables by which libraries know which rank a process is."""
    rank, world, local_rank, _ = crew.place
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": world // nodes}
    return {name: str(number) for name, number in numbers.items()}


def _gather(crew: Crew, folder: Path) -> None:
    """Wait for all ranks, or tell those that are here already where the run is."""
    if not _met:
        with waiting("starting the other processes"):
            crew.arrive()
    elif crew.place.rank == 0:
        crew.tell(folder)


def _join_group(crew: Crew, accelerator: str) -> None:
    """Initialise torch's process group: gloo for tensors on the CPU, and NCCL for those on GPUs.

    Raises:
        InputError: this rank has no GPU of its own.
    """
    import torch

    here, backend, device = crew.place, "gloo", None
    if accelerator != "cpu" and torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if here.local_rank >= gpus:
            raise InputError(
                f"rank {here.rank} is process {here.local_rank + 1} on {here.host}, and sees {gpus} GPUs there; lower "
                "hardware.devices, or have each process see all GPUs of its node"
            )
        backend, device = "cpu:gloo,cuda:nccl", torch.device("cuda", here.local_rank)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        backend,
        store=torch.distributed.PrefixStore("group", crew.store),
        rank=here.rank,
        world_size=here.world,
        timeout=GROUP_TIMEOUT,
        device_id=device,
    )
