"""The runs below some directories: what each was asked to do, how it ended, what it measured."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.report.run_files import AGAIN, as_number, as_yaml, read_config, read_json, read_table

SWEEP_FORMAT = 1
"""Of `sweep.json`: the number under `format`, as `shiqrun.sweeping.state` writes it."""
FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"
INTERRUPTED, RUNNING, WAITING = "interrupted", "running", "waiting"
"""How a job stands, as `sweep.json` has it; a run of no sweep is finished or unfinished."""
ENDED_BADLY, TO_COME = (FAILED, INTERRUPTED, UNFINISHED), (RUNNING, WAITING)
NO_RUNS_BELOW = {"checkpoints", "policy", "reward_model", "adapter", "wandb", "eval", "report"}
DEEPEST = 5

History = dict[str, dict[int, float]]
"""Metric to step to value."""


@dataclass(frozen=True)
class Run:
    """One training run, finished or not.

    Attributes:
        directory: the run directory; of a job that never began, where it would have been.
        name: the path by which the page calls it.
        status: finished; of a job also failed, interrupted, running or waiting; else unfinished (running or killed).
        config: dotted keys to values.
        configured: whether that is the whole config; of a job that left none, it is what `sweep.json` says of it.
        error: how it failed, as the sweep noted it.
        summary: `summary.json`, empty until a run has finished.
        history: `metrics.csv`.
    """

    directory: Path
    name: str
    status: str
    config: dict[str, Any]
    configured: bool
    error: str
    summary: dict[str, Any] = field(repr=False)
    history: History = field(repr=False)

    @property
    def algo(self) -> str:
        """The method, `?` where nothing says it."""
        return str(self.config.get("algo.name") or self.summary.get("algo") or "?")

    @property
    def data(self) -> str:
        """The data set, `?` where nothing says it."""
        return str(self.config.get("data.name") or self.summary.get("data") or "?")

    @property
    def beta(self) -> float | None:
        """Reward units per nat; None for methods without it."""
        return as_number(self.config.get("algo.beta"))

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.config.get("seed", self.summary.get("seed"))

    @cached_property
    def final(self) -> dict[str, float]:
        """Every number of the summary, or the last of each metric where the run has not finished."""
        values = self.summary or {name: steps[max(steps)] for name, steps in self.history.items()}
        return {name: number for name, value in values.items() if (number := as_number(value)) is not None}


@dataclass(frozen=True)
class Sweep:
    """A sweep directory and what `sweep.json` says about it."""

    directory: Path
    about: dict[str, Any]


@dataclass(frozen=True)
class Collection:
    """All that a report is about."""

    runs: list[Run]
    sweeps: list[Sweep]


def collect(directories: Sequence[Path]) -> Collection:
    """Every run in or below the directories, in the order of their names, each once.

    Raises:
        InputError: a directory is none or holds no run, no run has metrics, a file is broken, or a sweep is of another
            format.
    """
    runs: dict[Path, Run] = {}
    sweeps: list[Sweep] = []
    for directory in directories:
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory; give run directories or sweep directories")
        found = _below(directory, sweeps, len(directories) > 1)
        if not found:
            hint = "this is an evaluation; give the run's own directory. " if _evaluation(directory) else ""
            raise InputError(
                f"{directory}: {hint}no run in it or below (a run directory has .hydra/config.yaml and metrics.csv); "
                "give the run_dir of `shiqrun train` or `shiqrun sweep`"
            )
        for run in found:
            runs.setdefault(run.directory.resolve(), run)
    if not any(run.final for run in runs.values()):
        one = next(iter(runs.values())).directory
        raise InputError(
            f"{one / 'metrics.csv'}: no metrics, nor in summary.json"
            + (f", and so in all of {len(runs)} runs" if len(runs) > 1 else "")
            + "; run.log there says how it ended; go on with  shiqrun train resume=DIR"
        )
    return Collection(list(runs.values()), sweeps)


def _below(directory: Path, sweeps: list[Sweep], several: bool) -> list[Run]:
    """The runs in and below one directory given, and the jobs that its sweeps list without a directory."""
    jobs: dict[Path, dict[str, Any]] = {}
    for path in [directory, *_folders(directory, 0)]:
        if _is_sweep(path):
            sweeps.append(Sweep(path, _about(path)))
            jobs.update(_jobs(sweeps[-1]))
    places = {path.resolve(): path for path in _run_directories(directory, 0)} | {path: path for path in jobs}
    runs = [_read(path, _name(path, directory, several), jobs.get(place, {})) for place, path in places.items()]
    return sorted(runs, key=lambda run: natural(run.name))


def _name(path: Path, directory: Path, several: bool) -> str:
    """Short and, where several directories were given, told apart by theirs."""
    inside = path.resolve().relative_to(directory.resolve()).as_posix() if _within(path, directory) else path.name
    if inside == ".":
        return directory.resolve().name
    return f"{directory.resolve().name}/{inside}" if several else inside


def _within(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())


def natural(name: str) -> list[tuple[int, int | str]]:
    """`2_x` before `10_x`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _folders(directory: Path, depth: int) -> Iterator[Path]:
    """Folders that may be runs or sweeps, or hold some; a run may have the name of what runs have inside."""
    for child in sorted(directory.iterdir()) if depth < DEEPEST and not _is_run(directory) else ():
        if not child.is_dir() or child.name.startswith("."):
            continue
        if child.name not in NO_RUNS_BELOW or _is_run(child) or _is_sweep(child):
            yield child
            yield from _folders(child, depth + 1)


def _run_directories(directory: Path, depth: int) -> Iterator[Path]:
    if _is_run(directory):
        yield directory
        return
    yield from (path for path in _folders(directory, depth) if _is_run(path))


def _is_sweep(directory: Path) -> bool:
    return (directory / "sweep.json").exists()


def _evaluation(directory: Path) -> bool:
    return (directory / "eval.json").exists()


def _is_run(directory: Path) -> bool:
    """Whether a training run is here: it wrote metrics, or its config has a method and it is no other command's."""
    if _is_sweep(directory) or _evaluation(directory):
        return False
    if (directory / "metrics.csv").exists():
        return True
    if (directory / "summary.json").exists():
        return "algo" in read_json(directory / "summary.json")
    config = read_config(directory / ".hydra" / "config.yaml")
    return "algo.name" in config and "trainer.learning_rate" in config and (directory / "run.log").exists()


def _about(sweep: Path) -> dict[str, Any]:
    """`sweep.json`, whose format this version reads."""
    path = sweep / "sweep.json"
    about = read_json(path)
    if about.get("format") != SWEEP_FORMAT:
        raise InputError(
            f"{path}: format {about.get('format')!r}, this version reads {SWEEP_FORMAT}; report with the shiqrun "
            f"that made the sweep ({about.get('shiqrun', 'unknown')}), or give its job folders instead of the sweep"
        )
    return about


def _jobs(sweep: Sweep) -> dict[Path, dict[str, Any]]:
    """What `sweep.json` says of each job, by its folder."""
    jobs = {}
    for number, job in enumerate(sweep.about.get("jobs", ())):
        if not isinstance(job, dict) or not {"dir", "status", "swept"} <= set(job):
            raise InputError(f"{sweep.directory / 'sweep.json'}: job {number} has no dir, status or swept; {AGAIN}")
        jobs[(sweep.directory / job["dir"]).resolve()] = job
    return jobs


def _read(directory: Path, name: str, job: dict[str, Any]) -> Run:
    """A run with what there is of it."""
    path = directory / "summary.json"
    summary = read_json(path) if path.exists() else {}
    config = read_config(directory / ".hydra" / "config.yaml")
    status = str(job.get("status"))
    if status not in (*ENDED_BADLY, *TO_COME) or (summary and status != FAILED):
        status = FINISHED if summary else UNFINISHED
    error = " ".join(map(str, job.get("error", ())[-1:]))
    history = _history(directory / "metrics.csv")
    return Run(directory, name, status, config or _asked(job), bool(config), error, summary, history)


def _asked(job: dict[str, Any]) -> dict[str, Any]:
    """What a sweep says of the config of a job that left none."""
    names = {group: f"{group}.name" for group in ("algo", "data", "model", "hardware")}
    words = (str(word).lstrip("+").partition("=") for word in job.get("words", ()))
    said = {key: value for key, equals, value in words if equals} | job.get("swept", {})
    return {names.get(key, key): as_yaml(str(value)) for key, value in said.items()}


def _history(path: Path) -> History:
    history: History = {}
    for row in read_table(path) if path.exists() and path.stat().st_size else []:
        step = as_number(row.pop("step", None))
        if step is None:
            raise InputError(f"{path}: a row without a step; expected the metrics.csv of `shiqrun train`")
        for name, text in row.items():
            if (value := as_number(text)) is not None:
                history.setdefault(name, {})[int(step)] = value
    return history
