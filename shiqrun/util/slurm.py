"""A job of SLURM: its number, whether it runs again, the signal before its time is over, and how it is requeued."""

import os
import signal
import subprocess
from typing import Any

WARNING = signal.SIGUSR1
"""What `sbatch --signal=USR1@120` sends before the time limit: save, then run again in a new allocation."""
_early: list[int] = []


def job() -> str | None:
    """Return the number of the SLURM job that this process belongs to, `ARRAY_TASK` in a job array; None outside."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def runs_again() -> bool:
    """Return whether SLURM runs this job again, after it was requeued or its node failed."""
    return job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def note_warning() -> None:
    """Keep the warning from ending a process that cannot save yet; `early_warning` tells of it later."""
    if job() is not None and signal.getsignal(WARNING) == signal.SIG_DFL:
        signal.signal(WARNING, _note)


def early_warning() -> int:
    """Return the number of the signal that arrived before training began, 0 for none."""
    return _early[-1] if _early else 0


def _note(number: int, frame: Any) -> None:  # noqa: ARG001 - handlers have two parameters
    _early.append(number)


def requeue() -> str:
    """Have SLURM run this job again, and return what came of it in words; SLURM then ends its processes."""
    number = job()
    assert number is not None, "outside of SLURM"
    try:
        done = subprocess.run(["scontrol", "requeue", number], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"SLURM job {number} is not requeued: scontrol: {error.strerror}"
    if done.returncode:
        return f"SLURM job {number} is not requeued: {(done.stderr or done.stdout).strip()}"
    return f"SLURM job {number} is requeued"
