"""`trials.csv` lists the trials of a search, `best.csv` its best one; the report draws the best few."""

import math
from pathlib import Path

from rich.table import Table

from shiqrun.console import console, number
from shiqrun.errors import InputError
from shiqrun.report.run_records import collect_runs
from shiqrun.report.seed_groups import group_runs
from shiqrun.sweeping.outcome import ALGO, BEST, BestOfMethod, reference_line, write_best
from shiqrun.sweeping.search import short
from shiqrun.sweeping.state import Sweep, as_csv
from shiqrun.sweeping.study import Study, Trial
from shiqrun.util.atomic import write_atomic

TRIALS = "trials.csv"
SHOWN = 5
"""Trials in the last table."""
DRAWN = 8
"""Trials whose runs the report draws: its figures are legible with about ten methods."""


def write_trials(sweep: Sweep, study: Study) -> None:
    """Write `trials.csv`: number, state, metric, values and job numbers of every trial of a search."""
    search = study.search
    rows = []
    for trial in study.trials():
        first = trial.number * search.jobs_per_trial
        jobs = " ".join(str(n) for n in range(first, first + search.jobs_per_trial))
        value = trial.value if math.isfinite(trial.value) else ""
        rows.append([trial.number, trial.state, value, *(trial.values[key] for key in search.space), jobs])
    header = ["trial", "state", search.metric or "metric", *search.space, "jobs"]
    write_atomic(sweep.folder / TRIALS, as_csv(header, rows))


def conclude_search(sweep: Sweep) -> tuple[list[Path], list[str]]:
    """Print the best trials of a search and write `best.csv`.

    Returns:
        The directories of the runs that the report draws, and the overrides of a run with the best values; both empty
        where no trial has succeeded.
    """
    assert sweep.search is not None
    study = Study(sweep.folder, sweep.search)
    write_trials(sweep, study)
    if line := reference_line([values for _, values in sweep.finished_jobs()]):
        console.print(line, highlight=False, soft_wrap=True)
    best = _ranked(study)
    if not best:
        return [], []
    console.print(_table(study, best[:SHOWN]))
    try:
        write_best(sweep.folder / BEST, [_best(sweep, study, best[0])])
    except InputError as error:  # the runs are there, and what is broken can be moved away
        console.print(f"no {BEST}: {error}", highlight=False, soft_wrap=True, markup=False)
    values = sweep.search.settings(best[0].values)[0]
    words = [*sweep.fixed, *(f"{key}={value}" for key, value in values.items())]
    return [folder for trial in best[:DRAWN] for folder in _directories(sweep, trial)], words


def _ranked(study: Study) -> list[Trial]:
    """Return the trials that succeeded, the best first."""
    done = [trial for trial in study.trials() if trial.state == "complete"]
    return sorted(done, key=lambda trial: -(study.search.direction or 1) * trial.value)


def _directories(sweep: Sweep, trial: Trial) -> list[Path]:
    assert sweep.search is not None
    each = sweep.search.jobs_per_trial
    jobs = sweep.jobs[trial.number * each : (trial.number + 1) * each]
    return [place for job in jobs if (place := sweep.directory_of(job)).is_dir()]


def _best(sweep: Sweep, study: Study, trial: Trial) -> BestOfMethod:
    """Return the runs of the best trial, as the best of a grid's method is written.

    Raises:
        InputError: a file of a run is broken.
    """
    group = group_runs(collect_runs(_directories(sweep, trial)).runs)[0]
    values = {ALGO: group.runs[0].algo, **{key: str(value) for key, value in trial.values.items()}}
    assert study.search.metric is not None
    return BestOfMethod(values, (study.search.metric, study.search.direction), group)


def _table(study: Study, best: list[Trial]) -> Table:
    search = study.search
    seeds = f", mean over seeds {', '.join(search.seeds)}" if search.seeds else ""
    tried = len(study.trials())
    table = Table(title=f"The best of {tried} trials, by {search.metric}{seeds}", title_justify="left")
    table.add_column("trial", justify="right")
    for key in search.space:
        table.add_column(key, overflow="fold")
    table.add_column(search.metric or "", justify="right")
    for trial in best:
        values = (short(str(trial.values[key])) for key in search.space)
        table.add_row(str(trial.number), *values, number(trial.value))
    return table
