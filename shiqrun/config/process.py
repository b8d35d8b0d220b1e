"""These functions set up and clean up a job's process: environment variables, process group and log files."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf, open_dict
from yaml import YAMLError

from shiqrun.config.compose import compose

log = logging.getLogger("shiqrun")
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


def append_to_log(run_dir: Path, command: str) -> None:
    """Log to the run.log of an earlier run again, with the logging config that Hydra saved when the run began.

    Where that is missing or damaged, the logging config of this version serves as well.

    Args:
        run_dir: of the run.
        command: whose run it is.
    """
    file = run_dir / SAVED_BY_HYDRA
    saved = saved_by_hydra(file)
    whole = saved is not None and "job_logging" in saved.hydra and "verbose" in saved.hydra
    config = saved if whole and saved is not None else compose(command, [])
    with open_dict(config):
        config.hydra.runtime.output_dir = str(run_dir)
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    if not whole:
        log.warning(f"{file}: is missing or damaged; run.log goes on with the logging config of this version")


def saved_by_hydra(file: Path) -> DictConfig | None:
    """Return what Hydra saved of its own settings when a job began; None where a kill or a power cut left none."""
    try:
        found = OmegaConf.load(file)
    except (YAMLError, ValueError, OSError):
        return None
    if not isinstance(found, DictConfig):
        return None
    nodes = [OmegaConf.select(found, f"hydra.{node}") for node in ("job", "runtime")]
    return found if all(isinstance(node, DictConfig) for node in nodes) else None


def close_log() -> None:
    """Close the run.log of the job, so that a later job, or the caller of `main`, writes no line into it."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()
