"""These functions set up and clean up a job's process: environment variables, process group and log files."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.utils import configure_log
from omegaconf import OmegaConf

SAVED_BY_HYDRA = Path(".hydra", "hydra.yaml")


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables inside the context; restore the whole environment after it, whatever a job changed."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def leave_process_group() -> None:
    """Leave torch's process group: otherwise the next job of a sweep that starts ranks hangs."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def append_to_log(run_dir: Path) -> None:
    """Log to the run.log of an earlier run again, with the logging config that Hydra saved when the run began."""
    file = run_dir / SAVED_BY_HYDRA
    if file.is_file():
        saved = OmegaConf.load(file)
        saved.hydra.runtime.output_dir = str(run_dir)
        configure_log(saved.hydra.job_logging, saved.hydra.verbose)


def close_log() -> None:
    """Close the run.log of the job, so that a later job, or the caller of `main`, writes no line into it."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()
