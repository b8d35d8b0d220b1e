"""The console prints for a person: live views and progress bars on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")
WIDTH = 160
"""Columns where the output is no terminal, so that a logged step stays on one line."""
console = Console() if os.isatty(1) else Console(width=WIDTH)
PATIENCE_SECONDS = 2.0
"""Seconds before `track` prints a line where the output is no terminal."""
REPEAT_SECONDS = 20.0
"""Seconds between two later lines."""


def is_main_process() -> bool:
    """Return whether this process prints: rank 0, or the only process."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def quiet_other_ranks() -> None:
    """Silence all log messages but errors on every rank but 0."""
    if not is_main_process():
        console.quiet = True
        logging.getLogger().setLevel(logging.ERROR)


class Handler(logging.Handler):
    """A handler prints log messages through the console, so that they do not tear a live view."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the log message, with its level if it is a warning or an error."""
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        console.print(level + record.getMessage(), markup=False, highlight=False, soft_wrap=True)


class LogFile(logging.FileHandler):
    """A `LogFile` is a log file whose disk may be full: that is said once, and never ends a run."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the log message; on a full disk do nothing."""
        try:
            super().emit(record)
        except OSError:  # while the file is created
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is that of `logging`
        """Say that the disk takes no message; show the traceback of any other error."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.said:
            self.said = True
            print(f"shiqrun: warning: {self.baseFilename}: cannot be written ({error.strerror})", file=sys.stderr)

    def close(self) -> None:
        """Close the file; what a full disk did not take is dropped."""
        with suppress(OSError):
            super().close()


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items with a progress bar on a terminal, and elsewhere with a line after two seconds and later ones."""
    if console.is_terminal and not console.quiet:
        yield from rich_track(items, description, total=total, console=console, transient=True)
        return
    start, said, count = time.perf_counter(), 0.0, 0
    of = "" if total is None else f" of {total:,}"
    for count, item in enumerate(items, 1):
        spent = time.perf_counter() - start
        if spent - said > (REPEAT_SECONDS if said else PATIENCE_SECONDS):
            console.print(f"{description}: {count - 1:,}{of} ..." if said else f"{description} ...")
            said = spent
        yield item
    if said:
        console.print(f"{description}: {count:,} in {time.perf_counter() - start:.0f} s")


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Say what takes time inside the context: at once on a terminal, elsewhere with one line after two seconds.

    Progress bars may be shown inside it, below each other.
    """
    if console.is_terminal and not console.quiet:
        with console.status(description):
            yield
        return
    late = threading.Timer(PATIENCE_SECONDS, console.print, [f"{description} ..."])
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def say_next(*steps: str) -> None:
    """Print what to do after a command: its last line."""
    console.print(f"next: {'   or   '.join(steps)}", highlight=False, markup=False, soft_wrap=True)


def say_dry_run() -> None:
    """Print how a dry run becomes a run."""
    say_next("the same without dry_run=true", "with --cfg job --resolve, which prints every setting")


def count_of(count: int, noun: str) -> str:
    """Return a count and its noun as text: `1 job`, `2 jobs`."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def number(value: Any) -> str:
    """Return a metric as text for a person, with four significant figures."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
