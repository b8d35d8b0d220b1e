"""The CSV files beside the report's page hold every number of its tables and figures, and metrics left out there.

Their columns have the names that `sweep.csv` and `best.csv` use, too: a setting has that of its config key, a metric
its own, and half the width of its interval over seeds the metric's with `OVER_SEEDS` behind it.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shiqrun.report.page_tables import measured_metrics
from shiqrun.report.run_records import RunRecord
from shiqrun.report.seed_groups import SeedGroup, differing_keys
from shiqrun.util.intervals import is_bound
from shiqrun.util.quoting import portable

OVER_SEEDS = "_ci95_over_seeds"
"""Behind the name of a metric: half the width of its 95 % interval over seeds."""
BETA = "algo.beta"


def write_csv_files(
    folder: Path, groups: Sequence[SeedGroup], runs: Sequence[RunRecord], best: Mapping[str, SeedGroup]
) -> list[Path]:
    """Write `methods.csv`, `runs.csv` and `curves.csv` into the folder and return their paths.

    Intervals are half the width of the 95 % interval over seeds.
    """
    return [
        _write_methods(folder / "methods.csv", groups, runs, best),
        _write_runs(folder / "runs.csv", groups, runs),
        _write_curves(folder / "curves.csv", groups, runs),
    ]


def _write_methods(
    path: Path, groups: Sequence[SeedGroup], runs: Sequence[RunRecord], best: Mapping[str, SeedGroup]
) -> Path:
    """Write `methods.csv` with a row for each method and beta: means of the final metrics over seeds."""
    names = sorted({name for run in runs for name in run.final if "/" in name and not is_bound(name)})
    metrics = measured_metrics(groups, [name for name in names if name.startswith(("val/", "test/", "train/"))])
    header = ["method", BETA, "seeds", "best", *(c for m in metrics for c in (m, f"{m}{OVER_SEEDS}"))]
    rows = []
    for group in groups:
        estimates = [group.final(metric) for metric in metrics]
        numbers = [n for e in estimates for n in ((None, None) if e is None else (e.mean, e.half))]
        rows.append([group.method, group.beta, len(group.finished), int(best[group.method] is group), *numbers])
    return _write_table(path, header, rows)


def _write_runs(path: Path, groups: Sequence[SeedGroup], runs: Sequence[RunRecord]) -> Path:
    """Write `runs.csv` with a row for each run: the settings in which runs differ and every final number."""
    stands = ["dir", "status", "method", BETA, "seed"]
    keys = [key for key in differing_keys(runs) if key not in stands]
    names = sorted({name for run in runs for name in run.final} - {*stands, *keys})
    methods = {id(run): group.method for group in groups for run in group.runs}
    header = [*stands, *keys, *map(_column_name, names)]
    rows = [
        [
            *(run.name, run.status, methods[id(run)], run.beta, run.seed),
            *(portable(run.config.get(key)) for key in keys),
            *(run.final.get(name) for name in names),
        ]
        for run in runs
    ]
    return _write_table(path, header, rows)


def _write_curves(path: Path, groups: Sequence[SeedGroup], runs: Sequence[RunRecord]) -> Path:
    """Write `curves.csv` with a row for each method, beta, metric and step."""
    rows = [
        [group.method, group.beta, metric, step, e.mean, e.half, e.count]
        for group in groups
        for metric in sorted({name for run in runs for name in run.history})
        for step, e in group.curve(metric)
    ]
    return _write_table(path, ["method", BETA, "metric", "step", "mean", f"mean{OVER_SEEDS}", "seeds"], rows)


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Write a CSV file; None and numbers that are not finite become empty fields."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([["" if _is_missing(cell) else cell for cell in row] for row in rows])
    return path


def _column_name(name: str) -> str:
    """Return the column of a number of a summary; a reason for which rows were dropped is a sentence, no name."""
    return re.sub(r"[^\w/.-]+", "_", name).strip("_") if name.startswith("dropped/") else name


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
