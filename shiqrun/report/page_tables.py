"""The tables of the page, as HTML that sorts and as CSV."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from shiqrun.report.completion_view import evaluations
from shiqrun.report.number_text import NOTHING, between, number, plus_minus, write_table
from shiqrun.report.run_files import read_json
from shiqrun.report.run_records import ENDED_BADLY, Run
from shiqrun.report.seed_groups import KL, RETURN, REWARD, Estimate, Group, differing, shown
from shiqrun.util.intervals import HALF, bounds, is_bound

COLUMNS = {
    REWARD: "reward",
    KL: "KL, nats",
    RETURN: "regularised return",
    "val/reward_per_turn": "reward of a turn",
    "val/official_score": "official score",
    "val/regret": "regret",
    "val/win_rate": "win rate",
    "val/pass@1": "pass@1",
    "val/pass@10": "pass@10",
    "val/pass@100": "pass@100",
    "val/solutions_distinct": "different right answers",
    "val/completions/mean_length": "length, tokens",
    "val/completions/eos_rate": "ended with EOS",
    "val/entropy": "entropy, nats a token",
    "val/distinct_2": "distinct-2",
    "val/loss": "validation loss",
}
"""What the tables of methods show of what was measured; the CSV files have every metric."""

LONG = 16
"""Characters of a name from which it is broken on a phone."""


class Cell(NamedTuple):
    """A cell: its HTML, and the number that it is sorted by (None for none; text is sorted by what is seen)."""

    html: str
    value: float | str | None


def text(value: str) -> Cell:
    """A cell of text."""
    return Cell(escape(value), value)


def named(value: str, before: str = "") -> Cell:
    """A cell of a name, which may break where its parts meet; a long one keeps room for that on a phone."""
    html = before + re.sub(r"([_=,/]|\.(?=[a-z]))", r"\1<wbr>", escape(value))
    return Cell(f'<span class="long">{html}</span>' if len(value) > LONG else html, value)


def numeric(value: float | None) -> Cell:
    """A cell of a number."""
    return Cell(number(value), value)


def estimate(value: Estimate | None) -> Cell:
    """A cell of a mean with its interval."""
    if value is None:
        return numeric(None)
    mean, half = plus_minus(value.mean, value.half)
    return _spread(mean, f"± {half}" if half else "", value.mean)


def _spread(mean: str, interval: str, value: float) -> Cell:
    return Cell(mean + (f' <span class="half">{interval}</span>' if interval else ""), value)


def html_table(header: Sequence[str], rows: Sequence[Sequence[Cell]], bold: Sequence[bool] = ()) -> str:
    """A table that sorts by a click on its headers; a column of text is aligned to the left."""
    left = [any(isinstance(row[i].value, str) for row in rows) for i in range(len(header))]
    kinds = [' class="text"' if is_text else "" for is_text in left]
    heads = (f'<th scope="col"{k}><button>{escape(h)}</button></th>' for h, k in zip(header, kinds, strict=True))
    body = []
    for place, row in enumerate(rows):
        cells = (f"<td{kind}{_value(cell, kind)}>{cell.html}</td>" for cell, kind in zip(row, kinds, strict=True))
        best = ' class="best"' if place < len(bold) and bold[place] else ""
        body.append(f"<tr{best}>{''.join(cells)}</tr>")
    inside = f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table class="sortable">{inside}</table></div>'


def _value(cell: Cell, kind: str) -> str:
    if kind:
        return ""
    return f' data-v="{"" if cell.value is None else repr(float(cell.value))}"'


def metrics_of(groups: Iterable[Group], names: Iterable[str]) -> list[str]:
    """Those of the names that a finished run of the groups has measured."""
    has = {name for group in groups for run in group.finished for name in run.final}
    return [name for name in names if name in has]


def methods_table(groups: Sequence[Group], best: Mapping[str, Group], colours: Mapping[str, str]) -> str:
    """A row a method and beta, the best of each method in bold."""
    metrics = metrics_of(groups, COLUMNS)
    header = ["method", "β", "seeds", *(COLUMNS[name] for name in metrics)]
    rows, bold = [], []
    for group in groups:
        swatch = f'<span class="swatch" style="background:{colours[group.method]}"></span>'
        name = named(group.method, swatch)
        seeds = numeric(len(group.finished))
        rows.append([name, numeric(group.beta), seeds, *(estimate(group.final(m)) for m in metrics)])
        bold.append(best[group.method] is group and len(groups) > len(best))
    return html_table(header, rows, bold)


def runs_table(runs: Sequence[Run]) -> str:
    """A row a run: how it ended, where its config differs from the others', what came out."""
    keys = [key for key in differing(runs) if not key.endswith(("_target_", "_partial_"))]
    metrics = [name for name in (REWARD, KL, RETURN) if any(name in run.final for run in runs)]
    header = ["run", "status", "seed", *keys, *(COLUMNS[name] for name in metrics), "steps", "seconds"]
    rows = []
    for run in runs:
        status = Cell(f'<span class="{"bad" if run.status in ENDED_BADLY else ""}">{run.status}</span>', run.status)
        settings = [_setting(run.config.get(key), key in run.config) for key in keys]
        seed = _setting(run.seed, run.seed is not None)
        steps = max((max(at) for at in run.history.values()), default=None)
        counts = [numeric(run.final.get("steps", steps)), numeric(run.final.get("seconds"))]
        rows.append([named(run.name), status, seed, *settings, *(numeric(run.final.get(m)) for m in metrics), *counts])
    return html_table(header, rows)


def _setting(value: Any, there: bool) -> Cell:
    if not there:
        return Cell(NOTHING, None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(escape(shown(value)), float(value))
    return text(shown(value))


def evaluations_table(runs: Sequence[Run]) -> str:
    """The latest `shiqrun eval run=...` of each run; empty where there is none."""
    found = [(run, paths[-1]) for run in runs if (paths := evaluations(run.directory))]
    results = [(run, path, read_json(path / "eval.json")) for run, path in found]
    names = [name.replace("val/", "eval/") for name in COLUMNS]
    names = [name for name in names if any(name in values for _, _, values in results)]
    if not names:
        return ""
    header = ["run", "evaluation", *(COLUMNS[name.replace("eval/", "val/")] for name in names)]
    rows = []
    for run, path, values in results:
        rows.append([named(run.name), text(path.name), *(_evaluated(values, name) for name in names)])
    return html_table(header, rows)


def _evaluated(values: Mapping[str, Any], name: str) -> Cell:
    """A cell of a figure of `eval.json` with its interval over prompts."""
    mean, half, ends = values.get(name), values.get(name + HALF), bounds(values, name)
    if mean is not None and ends is not None:
        return _spread(*between(mean, *ends), mean)
    return estimate(None if mean is None else Estimate(mean, float("nan") if half is None else half, 1))


def config_table(config: Mapping[str, Any]) -> str:
    """Keys and values as they are."""
    rows = "".join(
        f"<tr><td><code>{escape(k)}</code></td><td><code>{escape(shown(v))}</code></td></tr>" for k, v in config.items()
    )
    return f'<div class="scroll" tabindex="0"><table class="config"><tbody>{rows}</tbody></table></div>'


def write_csv(folder: Path, groups: Sequence[Group], runs: Sequence[Run], best: Mapping[str, Group]) -> list[Path]:
    """`methods.csv`, `runs.csv` and `curves.csv`: every number of the tables and figures, and those left out there."""
    finals = sorted({name for run in runs for name in run.final if "/" in name and not is_bound(name)})
    measured = metrics_of(groups, [name for name in finals if name.startswith(("val/", "train/"))])
    header = ["method", "beta", "seeds", "best", *(c for m in measured for c in (m, f"{m}_ci95_over_seeds"))]
    rows = []
    for group in groups:
        estimates = [group.final(metric) for metric in measured]
        cells = [c for e in estimates for c in ((None, None) if e is None else (e.mean, e.half))]
        rows.append([group.method, group.beta, len(group.finished), int(best[group.method] is group), *cells])
    files = [write_table(folder / "methods.csv", header, rows)]
    keys, names = differing(runs), sorted({name for run in runs for name in run.final})
    method = {id(run): group for group in groups for run in group.runs}
    header = ["run", "status", "method", "beta", "seed", *(f"config/{key}" for key in keys), *names]
    rows = []
    for run in runs:
        settings = [run.config.get(key) for key in keys]
        about = [run.name, run.status, method[id(run)].method, run.beta, run.seed]
        rows.append([*about, *settings, *(run.final.get(name) for name in names)])
    files.append(write_table(folder / "runs.csv", header, rows))
    histories = sorted({name for run in runs for name in run.history})
    rows = [
        [group.method, group.beta, metric, step, e.mean, e.half, e.count]
        for group in groups
        for metric in histories
        for step, e in group.curve(metric)
    ]
    header = ["method", "beta", "metric", "step", "mean", "ci95_over_seeds", "seeds"]
    return [*files, write_table(folder / "curves.csv", header, rows)]
