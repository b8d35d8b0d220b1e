"""What a job must not leave behind in the process that ran it: variables, ranks, log files."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Inside, these variables are set; afterwards the environment is what it was, whatever a job set."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def leave_process_group() -> None:
    """Without this the next job of a sweep that starts ranks hangs."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def close_log() -> None:
    """Lets go of the job's run.log: a later job, or the caller of `main`, writes none of its lines there."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()
