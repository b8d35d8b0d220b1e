"""These functions build the tables of a report's page: rows of cells, each a text and the number that sorts it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from shiqrun.report.completion_view import evaluation_directories
from shiqrun.report.number_text import NO_NUMBER, format_interval, format_number, format_plus_minus
from shiqrun.report.run_files import read_json
from shiqrun.report.run_records import ENDED_BADLY, RunRecord
from shiqrun.report.seed_groups import KL, RETURN, REWARD, Estimate, SeedGroup, differing_keys, setting_text
from shiqrun.util.intervals import HALF, bounds
from shiqrun.util.quoting import portable

METRIC_TITLES = {
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
"""The metrics that tables of methods show, with their column titles; the CSV files have every metric."""

NAMING_KEYS = ("algo.name", "algo.beta")
"""The settings that stand before the numbers of a run; the others in which runs differ stand behind them."""


class Cell(NamedTuple):
    """A table cell holds the text that it shows and the value by which its column is sorted.

    Attributes:
        text: plain text.
        value: a number, None for no number, or text in a column of text.
        interval: shown small behind the text.
        is_name: a narrow screen may break it.
        swatch: CSS colour of a dot before the text.
        is_bad: shown as a warning.
    """

    text: str
    value: float | str | None
    interval: str = ""
    is_name: bool = False
    swatch: str = ""
    is_bad: bool = False

    @property
    def sort_key(self) -> str:
        """Return the number as page.js reads it to sort a column, empty for none."""
        return "" if self.value is None else repr(float(self.value))


@dataclass(frozen=True)
class Table:
    """A table holds a header and rows of cells; rows in bold are the best of a method."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    bold: Sequence[bool]

    @property
    def is_text(self) -> list[bool]:
        """Return whether each column holds text: it is aligned to the left and sorted by what is seen."""
        return [any(isinstance(row[i].value, str) for row in self.rows) for i in range(len(self.header))]


def name_cell(name: str, swatch: str = "") -> Cell:
    """Return a cell with the name of a run or method."""
    return Cell(name, name, is_name=True, swatch=swatch)


def number_cell(value: float | None) -> Cell:
    """Return a cell with a number, or a dash for None."""
    return Cell(format_number(value), value)


def estimate_cell(value: Estimate | None) -> Cell:
    """Return a cell with a mean and half the width of its interval."""
    if value is None:
        return number_cell(None)
    mean, half = format_plus_minus(value.mean, value.half)
    return Cell(mean, value.mean, f"± {half}" if half else "")


def setting_cell(value: Any, is_set: bool) -> Cell:
    """Return a cell with a value of a config, or a dash where the config has no such key."""
    if not is_set:
        return Cell(NO_NUMBER, None)
    text = str(portable(setting_text(value)))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(text, float(value) if is_number else text)


def measured_metrics(groups: Iterable[SeedGroup], names: Iterable[str]) -> list[str]:
    """Return those of the metrics that some finished run of the groups has measured."""
    measured = {name for group in groups for run in group.finished for name in run.final}
    return [name for name in names if name in measured]


def methods_table(groups: Sequence[SeedGroup], best: Mapping[str, SeedGroup], colours: Mapping[str, str]) -> Table:
    """Return a table with a row for each method and beta, the best beta of each method in bold."""
    metrics = measured_metrics(groups, METRIC_TITLES)
    rows = [
        [
            name_cell(group.method, swatch=colours[group.method]),
            number_cell(group.beta),
            number_cell(len(group.finished)),
            *(estimate_cell(group.final(metric)) for metric in metrics),
        ]
        for group in groups
    ]
    bold = [best[group.method] is group and len(groups) > len(best) for group in groups]
    return Table(["method", "β", "seeds", *(METRIC_TITLES[metric] for metric in metrics)], rows, bold)


def runs_table(runs: Sequence[RunRecord]) -> Table:
    """Return a table with a row for each run: its status, its final metrics, the settings in which runs differ."""
    keys = [key for key in differing_keys(runs) if not key.endswith(("_target_", "_partial_"))]
    metrics = [name for name in (REWARD, KL, RETURN) if any(name in run.final for run in runs)]
    first = [key for key in NAMING_KEYS if key in keys]
    others = [key for key in keys if key not in first]
    header = ["run", "status", "seed", *first, *(METRIC_TITLES[name] for name in metrics), "steps", "seconds", *others]
    rows = []
    for run in runs:
        last_step = max((max(values) for values in run.history.values()), default=None)
        rows.append(
            [
                name_cell(run.name),
                Cell(run.status, run.status, is_bad=run.status in ENDED_BADLY),
                setting_cell(run.seed, run.seed is not None),
                *(setting_cell(run.config.get(key), key in run.config) for key in first),
                *(number_cell(run.final.get(metric)) for metric in metrics),
                number_cell(run.final.get("steps", last_step)),
                number_cell(run.final.get("seconds")),
                *(setting_cell(run.config.get(key), key in run.config) for key in others),
            ]
        )
    return Table(header, rows, [False] * len(rows))


def evaluations_table(runs: Sequence[RunRecord]) -> Table | None:
    """Return a table of the latest `shiqrun eval run=...` of each run, None where no run was evaluated."""
    latest = [(run, paths[-1]) for run in runs if (paths := evaluation_directories(run.directory))]
    results = [(run, path, read_json(path / "eval.json")) for run, path in latest]
    titles = {name.replace("val/", "eval/"): title for name, title in METRIC_TITLES.items()}
    names = [name for name in titles if any(name in values for _, _, values in results)]
    if not names:
        return None
    rows = [
        [name_cell(run.name), Cell(path.name, path.name), *(_evaluation_cell(values, name) for name in names)]
        for run, path, values in results
    ]
    return Table(["run", "evaluation", *(titles[name] for name in names)], rows, [False] * len(rows))


def _evaluation_cell(values: Mapping[str, Any], name: str) -> Cell:
    """Return a cell with a metric of `eval.json` and its interval over prompts."""
    mean, half, ends = values.get(name), values.get(name + HALF), bounds(values, name)
    if mean is not None and ends is not None:
        text, interval = format_interval(mean, *ends)
        return Cell(text, mean, interval)
    return estimate_cell(None if mean is None else Estimate(mean, float("nan") if half is None else half, 1))
