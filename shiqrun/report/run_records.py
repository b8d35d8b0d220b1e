"""`collect_runs` finds every run below some directories and reads its config, status, summary and metrics."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.models.saved_files import PREFIX, TABLES, table_digests
from shiqrun.report.run_files import AGAIN, as_number, as_yaml, read_config, read_json, read_table, read_typed_keys
from shiqrun.util.summary import CHANGED, without_digest

log = logging.getLogger("shiqrun")
SWEEP_FORMAT = 1
"""The number under `format` in `sweep.json`, as `shiqrun.sweeping.state` writes it."""
FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"
INTERRUPTED, RUNNING, WAITING = "interrupted", "running", "waiting"
"""The statuses of a job in `sweep.json`; a run of no sweep is finished or unfinished."""
ENDED_BADLY, TO_COME = (FAILED, INTERRUPTED, UNFINISHED), (RUNNING, WAITING)
TRACKERS = {"wandb", "tensorboard", "mlflow", "trackio"}
SKIPPED_FOLDERS = {"checkpoints", "policy", "reward_model", "adapter", "eval", "report"} | TRACKERS
"""Folders inside a run directory, in which no run is looked for."""
DEEPEST = 5
"""The largest number of folders between a directory and a run below it."""

History = dict[str, dict[int, float]]
"""The value of each metric at each step."""


@dataclass(frozen=True)
class RunRecord:
    """A run record holds what one training run, finished or not, left in its directory.

    Attributes:
        directory: the run directory; of a job that never began, where it would have been.
        name: the path by which the page calls it.
        status: finished; of a job also failed, interrupted, running or waiting; else unfinished (running or killed).
        config: dotted keys to values.
        configured: whether that is the whole config; of a job that left none, it is what `sweep.json` says of it.
        error: the last line of the error, as the sweep noted it.
        summary: `summary.json`, empty until a run has finished.
        history: `metrics.csv`.
        typed: the keys that the command line set; None where that is not known.
    """

    directory: Path
    name: str
    status: str
    config: dict[str, Any]
    configured: bool
    error: str
    summary: dict[str, Any] = field(repr=False)
    history: History = field(repr=False)
    typed: frozenset[str] | None = None

    @property
    def algo(self) -> str:
        """Return the name of the loss, `?` where no file says it."""
        return str(self.config.get("algo.name") or self.summary.get("algo") or "?")

    @property
    def data(self) -> str:
        """Return the name of the data set, `?` where no file says it."""
        return str(self.config.get("data.name") or self.summary.get("data") or "?")

    @property
    def beta(self) -> float | None:
        """Return the strength of the KL penalty, reward units per nat; None for methods without it."""
        return as_number(self.config.get("algo.beta"))

    @property
    def seed(self) -> Any:
        """Return the run's seed."""
        return self.config.get("seed", self.summary.get("seed"))

    @cached_property
    def final(self) -> dict[str, float]:
        """Return every number of the run's summary; where it has not finished, the last value of each metric."""
        values = self.summary or {name: steps[max(steps)] for name, steps in self.history.items()}
        return {name: number for name, value in values.items() if (number := as_number(value)) is not None}


@dataclass(frozen=True)
class SweepRecord:
    """A sweep record holds a sweep directory and the content of its `sweep.json`."""

    directory: Path
    state: dict[str, Any]


@dataclass(frozen=True)
class RunCollection:
    """A run collection holds all runs and sweeps of a report."""

    runs: list[RunRecord]
    sweeps: list[SweepRecord]


def collect_runs(directories: Sequence[Path]) -> RunCollection:
    """Read every run in or below the directories, in the order of their names, each once.

    Raises:
        InputError: a directory does not exist or holds no run, no run has metrics, a file is broken, or a sweep has
            another format.
    """
    runs: dict[Path, RunRecord] = {}
    sweeps: list[SweepRecord] = []
    for directory in directories:
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory; give run directories or sweep directories")
        found = _runs_below(directory, sweeps, len(directories) > 1)
        if not found:
            hint = "this is an evaluation; give the run's own directory. " if _is_evaluation(directory) else ""
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
    return RunCollection(list(runs.values()), sweeps)


def _runs_below(directory: Path, sweeps: list[SweepRecord], several: bool) -> list[RunRecord]:
    """Return the runs in and below a directory and the jobs that its sweeps list; append its sweeps to `sweeps`."""
    jobs: dict[Path, dict[str, Any]] = {}
    for path in [directory, *_folders_below(directory, 0)]:
        if _is_sweep(path):
            sweeps.append(SweepRecord(path, _read_sweep_state(path)))
            jobs.update(_jobs_by_folder(sweeps[-1]))
    places = {path.resolve(): path for path in _run_directories(directory, 0)} | {path: path for path in jobs}
    runs = [
        _read_run(path, _display_name(path, directory, several), jobs.get(place, {})) for place, path in places.items()
    ]
    return sorted(runs, key=lambda run: natural_order(run.name))


def _display_name(path: Path, directory: Path, several: bool) -> str:
    """Return the path of a run inside its directory, with the directory's name in front where there are several."""
    inside = path.resolve().relative_to(directory.resolve()).as_posix() if _is_within(path, directory) else path.name
    if inside == ".":
        return directory.resolve().name
    return f"{directory.resolve().name}/{inside}" if several else inside


def _is_within(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key that orders numbers inside names by their size: `2_x` before `10_x`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _folders_below(directory: Path, depth: int) -> Iterator[Path]:
    """Yield the folders that may be or hold runs or sweeps; a run may have the name of a folder that runs have."""
    for child in sorted(directory.iterdir()) if depth < DEEPEST and not _is_run(directory) else ():
        if not child.is_dir() or child.name.startswith("."):
            continue
        if child.name not in SKIPPED_FOLDERS or _is_run(child) or _is_sweep(child):
            yield child
            yield from _folders_below(child, depth + 1)


def _run_directories(directory: Path, depth: int) -> Iterator[Path]:
    if _is_run(directory):
        yield directory
        return
    yield from (path for path in _folders_below(directory, depth) if _is_run(path))


def _is_sweep(directory: Path) -> bool:
    return (directory / "sweep.json").exists()


def _is_evaluation(directory: Path) -> bool:
    return (directory / "eval.json").exists()


def _is_run(directory: Path) -> bool:
    """Return whether a directory is that of a training run: it has metrics, or the summary or config of one."""
    if _is_sweep(directory) or _is_evaluation(directory):
        return False
    if (directory / "metrics.csv").exists():
        return True
    if (directory / "summary.json").exists():
        return "algo" in read_json(directory / "summary.json")  # its digest is compared where it is used
    config = read_config(directory / ".hydra" / "config.yaml")
    return "algo.name" in config and "trainer.learning_rate" in config and (directory / "run.log").exists()


def _read_sweep_state(sweep: Path) -> dict[str, Any]:
    """Return the content of `sweep.json`; raise InputError where this version does not read its format."""
    path = sweep / "sweep.json"
    state = read_json(path)
    if state.get("format") != SWEEP_FORMAT:
        raise InputError(
            f"{path}: format {state.get('format')!r}, this version reads {SWEEP_FORMAT}; report with the shiqrun "
            f"that made the sweep ({state.get('shiqrun', 'unknown')}), or give its job folders instead of the sweep"
        )
    return state


def _jobs_by_folder(sweep: SweepRecord) -> dict[Path, dict[str, Any]]:
    """Return the jobs of a `sweep.json` by their folders."""
    jobs = {}
    for number, job in enumerate(sweep.state.get("jobs", ())):
        if not isinstance(job, dict) or not {"dir", "status", "swept"} <= set(job):
            raise InputError(f"{sweep.directory / 'sweep.json'}: job {number} has no dir, status or swept; {AGAIN}")
        jobs[(sweep.directory / job["dir"]).resolve()] = job
    return jobs


def _read_run(directory: Path, name: str, job: dict[str, Any]) -> RunRecord:
    """Read what files there are of a run; `job` is its entry in `sweep.json`, empty for a run of no sweep."""
    summary = _read_summary(directory / "summary.json")
    known, now = {PREFIX + table: summary.get(PREFIX + table) for table in TABLES}, table_digests(directory)
    if changed := [key for key, digest in known.items() if digest is not None and now.get(key) != digest]:
        file = directory / changed[0].removeprefix(PREFIX)
        what = "has changed" if file.exists() else "is gone"
        raise InputError(f"{file}: {what} since the run finished (summary.json has its checksum); restore it")
    config = read_config(directory / ".hydra" / "config.yaml")
    status = str(job.get("status"))
    if status not in (*ENDED_BADLY, *TO_COME) or (summary and status != FAILED):
        status = FINISHED if summary else UNFINISHED
    error = " ".join(map(str, job.get("error", ())[-1:]))
    history = _read_history(directory / "metrics.csv")
    if history and not config:
        log.warning("%s/.hydra/config.yaml: is missing, so the page has no settings of this run; restore it", directory)
    known_config, typed = config or _config_of_job(job), read_typed_keys(directory / ".hydra" / "overrides.yaml")
    return RunRecord(directory, name, status, known_config, bool(config), error, summary, history, typed)


def _read_summary(path: Path) -> dict[str, Any]:
    """Return a run's summary, empty where there is none; raise InputError where it is broken or has changed."""
    summary = without_digest(read_json(path)) if path.exists() else {}
    if summary is None:
        raise InputError(f"{path}: {CHANGED}")
    return summary


def _config_of_job(job: dict[str, Any]) -> dict[str, Any]:
    """Return what a sweep knows of the config of a job that left none: its overrides."""
    names = {group: f"{group}.name" for group in ("algo", "data", "model", "hardware")}
    words = (str(word).lstrip("+").partition("=") for word in job.get("words", ()))
    overrides = {key: value for key, equals, value in words if equals} | job.get("swept", {})
    return {names.get(key, key): as_yaml(str(value)) for key, value in overrides.items()}


def _read_history(path: Path) -> History:
    history: History = {}
    for row in read_table(path, "step") if path.exists() and path.stat().st_size else []:
        step = as_number(row.pop("step", None))
        if step is None:
            raise InputError(f"{path}: a row without a step; expected the metrics.csv of `shiqrun train`; {AGAIN}")
        for name, text in row.items():
            if (value := as_number(text)) is not None:
                history.setdefault(name, {})[int(step)] = value
            elif text and not _is_infinite(text):
                raise InputError(f"{path}: {name} at step {step:g} is {text!r:.40}, expected a number; {AGAIN}")
    return history


def _is_infinite(text: str) -> bool:
    return text.strip().lstrip("+-").lower() in ("nan", "inf", "infinity")
