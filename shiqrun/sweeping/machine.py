"""What each process of a sweep gets of the machine: threads on a CPU, GPUs where there are several."""

import os
import subprocess

from shiqrun.sweeping.state import Job

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Machine:
    """Shares the machine among processes that run together.

    Args:
        parallel: how many do.
    """

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self.gpus: list[str] | None = None  # asked for with the first job that wants one

    def environment(self, job: Job, slot: int) -> dict[str, str]:
        """The environment of the job in one of the `parallel` slots; what the user set stays."""
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
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return found.split()
