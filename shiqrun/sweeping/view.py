"""What a person sees of a running sweep: one table on a terminal, one line a job that ends elsewhere."""

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

from shiqrun.console import console, counted, number
from shiqrun.sweeping.state import METRICS, Job, Sweep

SHOWN = ("val/reward", "val/kl", "val/loss")
STYLE = {"running": "cyan", "finished": "green", "failed": "bold red", "interrupted": "yellow", "waiting": "dim"}
REFRESH_SECONDS = 1.0
CHROME = 7  # lines of a terminal that are no rows of the table
WIDE = 1000  # columns, to see how wide a table would be
WIDEST = 24  # characters of a swept value
ERRORS = 3  # failed jobs whose reason stands under it


class View:
    """Shows the jobs that run, those that failed, and the last that finished.

    Args:
        sweep: whose jobs.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.recent: list[Job] = [job for job in sweep.jobs if job.status == "finished"]
        self._ended = 0  # in this session
        self._latest: dict[int, tuple[float, dict[str, float]]] = {}
        self._began, self._shown_at = time.monotonic(), 0.0
        self._live: Live | None = None

    def __enter__(self) -> "View":
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
        """Reads again how far the running jobs are, once a second."""
        if self._live is None or time.monotonic() - self._shown_at < REFRESH_SECONDS:
            return
        self._shown_at = time.monotonic()
        for job in self.sweep.jobs:
            if job.status == "running":
                self.latest(job)

    def ended(self, job: Job) -> None:
        """Takes note of a job that ended."""
        self._ended += 1
        self.recent.append(job)
        if self._live is None:
            numbers = self.latest(job)
            parts = [f"{name} {number(numbers[name])}" for name in SHOWN if name in numbers]
            why = f"exit code {job.exit_code}: {reason(job)}" if job.status == "failed" else ""
            words = [f"job {job.number}", job.name, f"{job.status} after {clock(job.seconds)}", *parts, why]
            self.say("  ".join(word for word in (*words, f"({self.counts()})") if word))

    def say(self, text: str) -> None:
        """One line, above the table."""
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def latest(self, job: Job) -> dict[str, float]:
        """The last value of every metric that the job has logged."""
        file = self.sweep.place(job) / METRICS
        changed = file.stat().st_mtime if file.is_file() else 0.0
        if changed and self._latest.get(job.number, (0.0, {}))[0] != changed:
            self._latest[job.number] = changed, read(file)
        return self._latest.get(job.number, (0.0, {}))[1]

    def counts(self) -> str:
        """How many jobs stand how."""
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
        """Counts and time over the table."""
        running = self.sweep.count("running")
        spent = time.monotonic() - self._began
        text = f"{counted(len(self.sweep.jobs), 'job')}: {running} running" + (
            f", {self.counts()}" if self.counts() else ""
        )
        text += f"  ·  {clock(spent)}"
        if self._ended and running:
            left = spent / self._ended * (running + self.sweep.count("waiting"))
            text += f", about {clock(left)} left"
        return Text(text, style="bold")

    def chosen(self, room: int) -> list[Job]:
        """The jobs that are shown: all that run, then failed ones, then the last that finished, then what is next."""
        running = [job for job in self.sweep.jobs if job.status == "running"]
        bad = [job for job in reversed(self.sweep.jobs) if job.status in ("failed", "interrupted")]
        done = [job for job in reversed(self.recent) if job.status == "finished"]
        coming = [job for job in self.sweep.jobs if job.status == "waiting"]
        few = running + bad[: max(room // 2, room - len(running) - len(done))]
        return sorted((few + done + coming)[:room], key=lambda job: job.number)

    def table(self, room: int, shown: Sequence[str]) -> Table:
        """One row a job, with these of its metrics."""
        table = Table(expand=False, padding=(0, 1))
        keys = short(self.sweep.swept)
        table.add_column("job", justify="right", no_wrap=True)
        for key in keys.values():
            table.add_column(key, no_wrap=True, max_width=WIDEST)
        table.add_column("status", no_wrap=True)
        for name in ("step", *shown, "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for job in self.chosen(room):
            numbers = self.latest(job)
            cells = [number(numbers[name]) if name in numbers else "" for name in shown]
            stands = Text(job.status, style=STYLE[job.status])
            swept = [job.swept.get(key, "") for key in keys]
            spent = clock(job.seconds) if job.seconds else ""
            table.add_row(str(job.number), *swept, stands, progress(job, numbers), *cells, spent)
        return table


def read(file: Path) -> dict[str, float]:
    """The last number of each column of a `metrics.csv`."""
    found: dict[str, float] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            found |= {name: float(value) for name, value in row.items() if name and value}
    return found


def progress(job: Job, numbers: dict[str, float]) -> str:
    """Steps taken, of how many where that can be known."""
    if "step" not in numbers:
        return ""
    step, total = int(numbers["step"]), job.max_steps
    if total is None and job.max_epochs and numbers.get("train/epoch"):
        total = round(job.max_epochs * step / numbers["train/epoch"])
    return f"{step}/{total}" if total else f"{step}"


def reason(job: Job) -> str:
    """Why it failed, in one line: what was told, or the last line of a traceback."""
    if not job.error:
        return "said nothing"
    first = job.error[0].removeprefix("shiqrun: ").removeprefix("failed: ").removeprefix("error: ")
    line = job.error[-1] if first == "failed" or job.error[-1].startswith("killed by") else first
    return line.strip()


def short(keys: list[str]) -> dict[str, str]:
    """A heading for each key: its last part, where no other key ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def shown_jobs(sweep: Sweep) -> Table:
    """The grid before anything ran."""
    table = Table(title=f"{counted(len(sweep.jobs), 'job')} of shiqrun {sweep.command}", title_justify="left")
    table.add_column("job", justify="right")
    for key in sweep.swept:
        table.add_column(key, overflow="fold")
    table.add_column("directory", overflow="fold")
    for job in sweep.jobs:
        values: list[Any] = [job.swept.get(key, "") for key in sweep.swept]
        table.add_row(str(job.number), *values, job.dir)
    return table
