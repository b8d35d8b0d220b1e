"""`conclude` summarises a finished sweep: each method at its best beta over seeds, and what the cache saved."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from shiqrun.console import console, number
from shiqrun.errors import InputError
from shiqrun.report.group_verdict import verdict_of_groups
from shiqrun.report.run_records import collect_runs
from shiqrun.report.seed_groups import (
    DIRECTIONS,
    KL,
    LOSS,
    RANKING_METRICS,
    REWARD,
    SeedGroup,
    best_groups,
    group_runs,
    ranking_metric,
)
from shiqrun.sweeping.comparison import conclude_comparison
from shiqrun.sweeping.state import Sweep, as_csv
from shiqrun.util.atomic import write_atomic

BEST = "best.csv"
ALSO = (REWARD, KL, "val/win_rate", LOSS)
"""The metrics that the table shows beside the one that chooses the best beta."""
BETA, SEED, ALGO = "algo.beta", "seed", "algo"


@dataclass(frozen=True)
class BestOfMethod:
    """`BestOfMethod` holds a method's runs at its best beta, chosen by the same rule as in the report.

    Attributes:
        swept: the algorithm and each swept key but the seed, with its value; where jobs that the report takes for one
            method have several values, these with commas.
        by: the metric that chose the beta, and 1 if more of it is better, else -1.
        group: the runs of all seeds.
    """

    swept: dict[str, str]
    by: tuple[str, int]
    group: SeedGroup


def best_of_methods(sweep: Sweep) -> list[BestOfMethod]:
    """Return each method of the sweep at its best beta; a method without any metric to choose by is left out.

    Raises:
        InputError: a file of a run is broken.
    """
    groups = group_runs(collect_runs([sweep.folder]).runs)
    asked = {sweep.directory_of(job).resolve(): job.swept for job in sweep.jobs}
    keys = [ALGO, *(key for key in sweep.swept if key not in (ALGO, BETA, SEED)), *({BETA} & set(sweep.swept))]
    found = []
    for method, group in best_groups(groups).items():
        by = ranking_metric([g for g in groups if g.method == method])
        if by is None:
            continue
        known = [{ALGO: run.algo, **asked.get(run.directory.resolve(), {})} for run in group.finished]
        values = {key: ",".join(dict.fromkeys(each[key] for each in known if key in each)) for key in keys}
        found.append(BestOfMethod(values, by, group))
    return found


def reference_line(finished: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a line on how often the reference was scored and what the cache saved; None where no job needed one."""
    known = [values for values in finished if isinstance(values.get("seconds/reference_computed"), int | float)]
    read = [values for values in known if values.get("reference_cached")]
    scored = [values for values in known if not values.get("reference_cached")]
    if not known:
        return None
    reading = math.fsum(values["seconds/reference"] for values in read)
    saved = math.fsum(values["seconds/reference_computed"] for values in read) - reading
    cost = math.fsum(values["seconds/reference_computed"] for values in scored)
    how = f"was scored {_times(len(scored))} ({cost:.1f} s)" if scored else "had been scored before these jobs"
    if not read:
        return f"the reference {how}"
    line = f"the reference {how} and was read {_times(len(read))} ({reading:.1f} s)"
    return f"{line}: {saved:.1f} s saved" if saved > 0 else f"{line}: nothing saved at this size"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def conclude(sweep: Sweep) -> None:
    """Print the summary of a sweep with its verdict and write `best.csv`, as far as its jobs have measured a metric."""
    finished = [values for _, values in sweep.finished_jobs()]
    line = reference_line(finished)
    if line:
        console.print(line, highlight=False, soft_wrap=True)
    if sweep.comparison is not None:
        conclude_comparison(sweep)
        return
    if not any(metric in values for values in finished for metric, _ in RANKING_METRICS):
        return
    try:
        found = best_of_methods(sweep)
        said = verdict_of_groups(collect_runs([sweep.folder]).runs)
    except InputError as error:  # the runs are there, and what is broken can be moved away
        console.print(f"no {BEST}: {error}", highlight=False, soft_wrap=True, markup=False)
        return
    if found:
        write_best(sweep.folder / BEST, found)
        console.print(as_table(found))
        for sentence in said:
            console.print(sentence, style="bold", highlight=False, soft_wrap=True)


def _columns(found: Sequence[BestOfMethod]) -> list[str]:
    names = dict.fromkeys((*(one.by[0] for one in found), *ALSO))
    return [name for name in names if any(one.group.final(name) for one in found)]


def write_best(path: Path, found: Sequence[BestOfMethod]) -> None:
    """Write `best.csv`, one row a method: means over seeds and half 95 % intervals (empty below three)."""
    metrics, rows = _columns(found), []
    for one in found:
        numbers: list[Any] = []
        for estimate in map(one.group.final, metrics):
            pair = (estimate.mean, estimate.half) if estimate else (math.nan, math.nan)
            numbers += [x if math.isfinite(x) else "" for x in pair]
        rows.append([*one.swept.values(), len(one.group.finished), one.by[0], *numbers])
    header = [*found[0].swept, "seeds", "best_by", *(n for m in metrics for n in (m, f"{m}_ci95_over_seeds"))]
    write_atomic(path, as_csv(header, rows))


def as_table(found: Sequence[BestOfMethod]) -> Table:
    """Return the best of each method, as in `best.csv`, as a table for the terminal."""
    keys, metrics = list(found[0].swept), _columns(found)
    by = " or ".join(dict.fromkeys(f"{DIRECTIONS[sign]} mean {metric}" for metric, sign in (one.by for one in found)))
    of = "The best beta of each method" if BETA in keys else "The methods"
    table = Table(
        title=f"{of}, by {by} over seeds; ± is the 95 % interval over seeds, from three on", title_justify="left"
    )
    for key in (*keys, "seeds", *metrics):
        table.add_column(key, justify="left" if key in keys else "right")
    for one in found:
        estimates = [one.group.final(name) for name in metrics]
        cells = [with_interval(e.mean, e.half) if e else "" for e in estimates]
        table.add_row(*one.swept.values(), str(len(one.group.finished)), *cells)
    return table


def with_interval(mean: float, half: float) -> str:
    """Return `mean ± half width` as text, or the mean alone where the half width is unknown (below three seeds)."""
    return f"{number(mean)} ± {half:.2g}" if math.isfinite(half) else number(mean)
