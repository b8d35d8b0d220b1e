"""A running sweep is shown as a live table on a terminal, and elsewhere as one line for each job that ends."""

import csv
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from shiqrun.console import console, count_of, number
from shiqrun.sweeping.state import METRICS, Job, Sweep

SHOWN = ("val/reward", "val/kl", "val/loss")
STYLE = {"running": "cyan", "finished": "green", "failed": "bold red", "interrupted": "yellow", "waiting": "dim"}
REFRESH_SECONDS = 1.0
CHROME = 7  # lines around the rows of the table
WIDE = 1000  # columns, more than any table needs: measures its own width
WIDEST = 24  # characters of a swept value, at most
ERRORS = 3  # failed jobs whose reason stands under the table


class SweepView:
    """A sweep view shows the jobs of a sweep that run, that failed, and that finished last.

    Args:
        sweep: the jobs.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.recent: list[Job] = [job for job in sweep.jobs if job.status == "finished"]
        self._ended = 0  # in this session
        self._latest: dict[int, tuple[float, dict[str, float]]] = {}
        self._began, self._shown_at = time.monotonic(), 0.0
        self._live: Live | None = None

    def __enter__(self) -> "SweepView":
        if console.is_terminal:
            self._live = Live(self, console=console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.update(self, refresh=True)
            self._live.stop()
            self._live = None

    def update(self) -> None:
        """Read the metrics of the sweep's running jobs again, once a second at most."""
        if self._live is None or time.monotonic() - self._shown_at < REFRESH_SECONDS:
            return
        self._shown_at = time.monotonic()
        for job in self.sweep.jobs:
            if job.status == "running":
                self.latest(job)

    def note_end(self, job: Job) -> None:
        """Note that a job ended; print its line where no live table is shown."""
        self._ended += 1
        self.recent.append(job)
        if self._live is None:
            numbers = self.latest(job)
            parts = [f"{name} {number(numbers[name])}" for name in SHOWN if name in numbers]
            why = f"exit code {job.exit_code}: {reason(job)}" if job.status == "failed" else ""
            words = [f"job {job.number}", job.name, f"{job.status} after {as_clock(job.seconds)}", *parts, why]
            self.say("  ".join(word for word in (*words, f"({self.counts()})") if word))

    def say(self, text: str) -> None:
        """Print one line above the live table."""
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def latest(self, job: Job) -> dict[str, float]:
        """Return the last value of every metric that the job has logged."""
        file = self.sweep.directory_of(job) / METRICS
        changed = file.stat().st_mtime if file.is_file() else 0.0
        if changed and self._latest.get(job.number, (0.0, {}))[0] != changed:
            self._latest[job.number] = changed, last_values(file)
        return self._latest.get(job.number, (0.0, {}))[1]

    def counts(self) -> str:
        """Return how many of the sweep's jobs have which status, as text."""
        names = {"finished": "finished", "failed": "failed", "interrupted": "interrupted", "waiting": "to go"}
        return ", ".join(f"{n} {word}" for status, word in names.items() if (n := self.sweep.count(status)))  # type: ignore[arg-type]

    def __rich_console__(self, terminal: Console, options: ConsoleOptions) -> RenderResult:
        room = max((options.max_height or terminal.height) - CHROME, 3 + ERRORS)
        bad = [job for job in self.sweep.jobs if job.status == "failed"][-ERRORS:]
        why = [Text(f"job {job.number}: {reason(job)}", style="red", overflow="ellipsis", no_wrap=True) for job in bad]
        tables = [self.table(room - len(why), SHOWN[:count]) for count in range(len(SHOWN), -1, -1)]
        wide = options.update(width=WIDE)
        fits = (table for table in tables if Measurement.get(terminal, wide, table).maximum <= options.max_width)
        yield Group(self.headline(), next(fits, tables[-1]), *why)

    def headline(self) -> Text:
        """Return the line above the table: counts of jobs and time."""
        running = self.sweep.count("running")
        spent = time.monotonic() - self._began
        text = f"{count_of(self.sweep.expected, 'job')}: {running} running" + (
            f", {self.counts()}" if self.counts() else ""
        )
        text += f"  ·  {as_clock(spent)}"
        if self._ended and running:
            to_come = self.sweep.expected - len(self.sweep.jobs) + self.sweep.count("waiting")
            left = spent / self._ended * (running + to_come)
            text += f", about {as_clock(left)} left"
        return Text(text, style="bold")

    def visible_jobs(self, room: int) -> list[Job]:
        """Return the jobs that fit in `room` rows: running, then failed ones, the last finished ones, the next ones."""
        running = [job for job in self.sweep.jobs if job.status == "running"]
        bad = [job for job in reversed(self.sweep.jobs) if job.status in ("failed", "interrupted")]
        done = [job for job in reversed(self.recent) if job.status == "finished"]
        coming = [job for job in self.sweep.jobs if job.status == "waiting"]
        few = running + bad[: max(room // 2, room - len(running) - len(done))]
        return sorted((few + done + coming)[:room], key=lambda job: job.number)

    def table(self, room: int, shown: Sequence[str]) -> Table:
        """Return the live table: one row a job, with the metrics `shown`."""
        table = Table(expand=False, padding=(0, 1))
        keys = short_names(self.sweep.swept)
        table.add_column("job", justify="right", no_wrap=True)
        for key in keys.values():
            table.add_column(key, no_wrap=True, max_width=WIDEST)
        table.add_column("status", no_wrap=True)
        for name in ("step", *shown, "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for job in self.visible_jobs(room):
            numbers = self.latest(job)
            cells = [number(numbers[name]) if name in numbers else "" for name in shown]
            stands = Text(job.status, style=STYLE[job.status])
            swept = [job.swept.get(key, "") for key in keys]
            spent = as_clock(job.seconds) if job.seconds else ""
            table.add_row(str(job.number), *swept, stands, progress(job, numbers), *cells, spent)
        return table


def last_values(file: Path) -> dict[str, float]:
    """Return the last number in each column of a `metrics.csv`."""
    found: dict[str, float] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            found |= {name: float(value) for name, value in row.items() if name and value}
    return found


def progress(job: Job, numbers: dict[str, float]) -> str:
    """Return as text the optimiser steps that a job has taken, and their total where it is known."""
    if "step" not in numbers:
        return ""
    step, total = int(numbers["step"]), job.max_steps
    if total is None and job.max_epochs and numbers.get("train/epoch"):
        total = round(job.max_epochs * step / numbers["train/epoch"])
    return f"{step}/{total}" if total else f"{step}"


def reason(job: Job) -> str:
    """Return in one line why a job failed: its message, or the last line of a traceback."""
    if not job.error:
        return "it printed nothing"
    first = job.error[0].removeprefix("shiqrun: ").removeprefix("failed: ").removeprefix("error: ")
    line = job.error[-1] if first == "failed" or job.error[-1].startswith("killed by") else first
    return line.strip()


def short_names(keys: list[str]) -> dict[str, str]:
    """Return a column heading for each config key: its last part, or all of it where another key ends in that part."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def as_clock(seconds: float) -> str:
    """Return a duration in seconds as text: hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def jobs_table(sweep: Sweep) -> Table:
    """Return the table of a sweep's jobs before any of them runs."""
    table = Table(title=f"{count_of(len(sweep.jobs), 'job')} of shiqrun {sweep.command}", title_justify="left")
    table.add_column("job", justify="right")
    for key in sweep.swept:
        table.add_column(key, overflow="fold")
    table.add_column("directory", overflow="fold")
    for job in sweep.jobs:
        values: list[Any] = [job.swept.get(key, "") for key in sweep.swept]
        table.add_row(str(job.number), *values, job.dir)
    return table
