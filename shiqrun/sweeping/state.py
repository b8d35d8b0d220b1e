"""A sweep's directory holds its state: `sweep.json` lists the jobs and their status, `sweep.csv` is a table of them."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from shiqrun import __version__
from shiqrun.errors import InputError
from shiqrun.sweeping.search import Search
from shiqrun.util.atomic import write_atomic
from shiqrun.util.summary import SUMMARY, is_finished, read_summary

FORMAT = 1
STATE, TABLE, CONSOLE = "sweep.json", "sweep.csv", "console.log"
METRICS, CONFIG = "metrics.csv", ".hydra/config.yaml"
Status = Literal["waiting", "running", "finished", "failed", "interrupted"]


@dataclass
class Job:
    """A job is one point of the sweep's grid: the overrides of one run, and how the run stands.

    Attributes:
        number: place in the grid, from 0.
        dir: name of the job's directory in the sweep's.
        words: the words after the command on the job's command line, without `run_dir`.
        swept: each swept key and its value in this job.
        max_steps: optimiser steps that the run takes, None where epochs are counted.
        max_epochs: passes over the data.
        gpus: number of GPUs that the job asks for, 0 on a CPU.
        status: how the job stands.
        exit_code: of the process; 128 + the signal's number if a signal killed it; None where nobody saw it end.
        seconds: wall time over all sessions.
        error: the last lines that a failed job printed.
    """

    number: int
    dir: str
    words: list[str]
    swept: dict[str, str]
    max_steps: int | None = None
    max_epochs: int | None = None
    gpus: int = 0
    status: Status = "waiting"
    exit_code: int | None = None
    seconds: float = 0.0
    error: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the job's swept keys and values as one line, for a person."""
        return " ".join(f"{key}={value}" for key, value in self.swept.items()) or self.dir


@dataclass
class Comparison:
    """A comparison is what `shiqrun compare` adds to a grid.

    Attributes:
        methods: the names of the methods that are run.
        left_out: why others are not, by name.
    """

    methods: list[str]
    left_out: dict[str, str]


@dataclass
class Sweep:
    """A sweep is a grid of jobs of one command, in one directory.

    Attributes:
        folder: the sweep's directory.
        command: the command of shiqrun that each job runs.
        typed: the words after `shiqrun` that made the sweep.
        cwd: the directory in which they were typed; relative paths in the jobs' words start there.
        fixed: overrides that all jobs share.
        jobs: all jobs, in the order of the grid; of a search, those that Optuna has asked for so far.
        search: what is searched; None for a grid.
        comparison: of methods, each with a grid of its own; None for other sweeps.
    """

    folder: Path
    command: str
    typed: list[str]
    cwd: str
    fixed: list[str]
    jobs: list[Job]
    search: Search | None = None
    comparison: Comparison | None = None

    @property
    def expected(self) -> int:
        """Return the number of jobs that the sweep will have run at its end."""
        return len(self.jobs) if self.search is None else self.search.trials * self.search.jobs_per_trial

    @property
    def swept(self) -> list[str]:
        """Return the swept keys, in the order in which they were typed."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.swept))

    def directory_of(self, job: Job) -> Path:
        """Return the job's directory."""
        return self.folder / job.dir

    def count(self, status: Status) -> int:
        """Return the number of the sweep's jobs with this status."""
        return sum(job.status == status for job in self.jobs)

    def finished_jobs(self) -> list[tuple[Job, dict[str, Any]]]:
        """Return every finished job that left a `summary.json`, and the content of that."""
        done = [(job, summary(self.directory_of(job))) for job in self.jobs if job.status == "finished"]
        return [(job, values) for job, values in done if values]

    def save(self) -> None:
        """Write the sweep's `sweep.json` and `sweep.csv`, each as a whole."""
        write_atomic(self.folder / STATE, json.dumps(self._state(), indent=1) + "\n")
        write_atomic(self.folder / TABLE, self._table())

    def _state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "shiqrun": __version__,
            "command": self.command,
            "typed": self.typed,
            "cwd": self.cwd,
            "swept": self.swept,
            "fixed": self.fixed,
            "jobs": [asdict(job) for job in self.jobs],
            "search": None if self.search is None else asdict(self.search),
            **({} if self.comparison is None else {"comparison": asdict(self.comparison)}),
        }

    def _table(self) -> str:
        found = {job.number: metrics_of(values) for job, values in self.finished_jobs()}
        metrics = sorted({name for values in found.values() for name in values})
        rows = []
        for job in self.jobs:
            code = "" if job.exit_code is None else job.exit_code
            stands = (job.number, job.status, code, round(job.seconds, 1), job.dir)
            values = found.get(job.number, {})
            rows.append([*stands, *(job.swept.get(k, "") for k in self.swept), *(values.get(m, "") for m in metrics)])
        return as_csv(["job", "status", "exit_code", "seconds", "dir", *self.swept, *metrics], rows)


def load(folder: Path) -> Sweep:
    """Read the sweep in a directory; nothing is written.

    A job recorded as running counts as finished if its summary is whole (its time is then the summary's, unless more
    is on record), else as interrupted. A finished job whose directory is gone waits again; one whose summary is damaged
    counts as interrupted.

    Raises:
        InputError: the directory holds no sweep, one of another format, or one that cannot be understood.
    """
    file = folder / STATE
    if not file.is_file():
        what = f"holds no {STATE}, so it is no sweep of this program" if folder.is_dir() else "no such directory"
        raise InputError(f"sweep.resume={folder}: {what}; give the directory that holds {STATE}")
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        found = state.get("format")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); nothing was changed") from error
    if found != FORMAT:
        raise InputError(
            f"{file}: met format {found!r}, written by shiqrun {state.get('shiqrun', 'unknown')}; this is shiqrun "
            f"{__version__}, which reads format {FORMAT}. Go on with it there or start a new sweep; nothing was changed"
        )
    try:
        sweep = TypeAdapter(Sweep).validate_python({**state, "folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {where}: {first['msg']}; no sweep to go on with; nothing was changed") from error
    for job in sweep.jobs:
        place = sweep.directory_of(job)
        if job.status == "running":
            job.status = "finished" if is_finished(place) else "interrupted"
            job.seconds = max(job.seconds, summary(place).get("seconds", 0.0))
        if job.status == "finished" and not place.is_dir():
            job.status, job.seconds = "waiting", 0.0
        if job.status == "finished" and (place / SUMMARY).exists() and not is_finished(place):
            job.status = "interrupted"
    return sweep


def summary(place: Path) -> dict[str, Any]:
    """Return `summary.json` of a run directory, empty where there is no whole one."""
    return read_summary(place) if is_finished(place) else {}


def metrics_of(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the final metrics of a summary: the finite numbers under `val/`, `test/` and `train/`."""
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {k: v for k, v in numbers.items() if k.startswith(("val/", "test/", "train/")) and math.isfinite(v)}


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
