"""The jobs of a sweep share the machine: each process gets a number of CPU threads and, where it asks, its own GPUs."""

import os
import subprocess

from shiqrun.sweeping.state import Job

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Machine:
    """A `Machine` divides CPU cores and GPUs among a sweep's jobs that run at the same time.

    Args:
        parallel: number of jobs that run at the same time.
    """

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self.gpus: list[str] | None = None  # None until the first job that wants one asks for them

    def environment(self, job: Job, slot: int) -> dict[str, str]:
        """Return the environment variables of a sweep's job in one of the `parallel` slots; the user's own stay."""
        given = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
        if self.parallel == 1:
            return given
        given.setdefault("OMP_NUM_THREADS", str(max(cores() // self.parallel, 1)))
        if job.gpus:
            self.gpus = gpus() if self.gpus is None else self.gpus
            if len(self.gpus) > 1:
                first = slot * job.gpus
                chosen = [self.gpus[(first + k) % len(self.gpus)] for k in range(min(job.gpus, len(self.gpus)))]
                given[VISIBLE] = ",".join(chosen)
        return given


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return found.split()
