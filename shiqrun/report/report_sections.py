"""`ReportSections` makes the sections of a report about runs: the values that each template of `templates/` shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shiqrun.report import plots
from shiqrun.report.completion_view import LOG_RATIO, SelectedCompletions, compared_method, select_completions
from shiqrun.report.csv_files import write_csv_files
from shiqrun.report.curve_panels import curve_values
from shiqrun.report.frontier_plot import LEAST_POINTS, frontier_plot, frontier_points, known_optima
from shiqrun.report.html_page import Section
from shiqrun.report.latex_files import write_latex_files
from shiqrun.report.number_text import format_number
from shiqrun.report.page_tables import evaluations_table, methods_table, runs_table
from shiqrun.report.run_facts import summary_values
from shiqrun.report.run_records import RunRecord
from shiqrun.report.seed_groups import (
    DIRECTIONS,
    SeedGroup,
    best_groups,
    differing_keys,
    is_compared,
    ranking_metric,
    reference_reward,
    setting_text,
    training_amounts,
)
from shiqrun.report.token_view import select_trajectories
from shiqrun.util.quoting import portable

DROPPED_ALONE = "dropped/alone with its prompt"
"""The beginning of the summary's key for trajectories dropped because a method could compare them with no other."""


@dataclass
class ReportSections:
    """`ReportSections` makes the sections of one page from runs, and writes figures and tables into a folder.

    Attributes:
        runs: every run, in the order of their names.
        groups: the same runs by method and beta.
        folder: for figures and tables.
        formats: of the figures' files.
    """

    runs: list[RunRecord]
    groups: list[SeedGroup]
    folder: Path
    formats: Sequence[str] = plots.FORMATS

    @cached_property
    def best(self) -> dict[str, SeedGroup]:
        """Return the runs of each method at its best beta."""
        return best_groups(self.groups)

    @cached_property
    def styles(self) -> plots.Styles:
        """Return the colour, marker and dashes of each method."""
        return plots.method_styles(list(self.best))

    @cached_property
    def _completions(self) -> SelectedCompletions:
        return select_completions(*self._labelled_runs)

    @cached_property
    def _trajectories(self) -> tuple[dict[str, Any], int]:
        return select_trajectories(*self._labelled_runs)

    @cached_property
    def _labelled_runs(self) -> tuple[list[RunRecord], list[str]]:
        """Return the runs whose completions and tokens are on the page, those at the best betas, and their labels."""
        pairs = [(run, group) for group in self.best.values() for run in group.plotted]
        return [run for run, _ in pairs], [_label(run, group) for run, group in pairs]

    @property
    def script_data(self) -> dict[str, Any]:
        """Return the JSON values that the page's scripts read, by element id."""
        completions = {"completions-data": self._completions.script_data()} if self._completions.rows else {}
        if columns := self._compared:
            completions["compare-data"] = columns
        return completions | ({"tokens-data": self._trajectories[0]} if self._trajectories[0]["rows"] else {})

    def sections(
        self, sweeps: Sequence[dict[str, Any]], pivotal: Sequence[Section] = (), compared: Sequence[Section] = ()
    ) -> list[Section]:
        """Return the page's sections that have content, in order; draw the figures and write the tables.

        Args:
            sweeps: `sweep.json` of each sweep.
            pivotal: the sections about searches for pivotal tokens.
            compared: the section about a comparison of methods.
        """
        finished = [group for group in self.groups if group.finished]
        tables = write_csv_files(self.folder, self.groups, self.runs, self.best)
        tables += write_latex_files(self.folder, finished, self.best)
        sections = [
            Section("summary", "Summary", summary_values(self.runs, self.groups, sweeps)),
            *compared,
            Section("frontier", "Reward and KL", self._frontier()),
            Section("methods", "Methods", self._methods()),
            Section("curves", "Learning curves", curve_values(self.groups, self.best, self.styles, self._draw)),
            Section("tokens", "Credit, token by token", self._tokens()),
            *pivotal,
            Section("compare", "One prompt, every method", self._compare()),
            Section("completions", "Completions", self._shown_completions()),
            Section("runs", "Runs and configs", self._runs()),
            Section("files", "Files", self._files(tables)),
        ]
        return [section for section in sections if section.values]

    def _draw(self, name: str, title: str, plot: plots.Plot, size: tuple[float, float]) -> Markup:
        """Write a figure of the report as files and return it as an SVG element."""
        return plots.inline_svg(self._write(name, plot, size), name, title, {})

    def _write(self, name: str, plot: plots.Plot, size: tuple[float, float]) -> str:
        return plots.write_figure(plot, size, self.folder / "figures" / name, self.formats)

    def _frontier(self) -> dict[str, Any]:
        """Return the frontier, wide and for a phone; no figure for fewer points than make one."""
        points, figures = frontier_points(self.groups), list[Markup]()
        for name, size in (("frontier", plots.WIDE), ("frontier_narrow", plots.NARROW)):
            if len(points) < LEAST_POINTS:
                break
            plot = frontier_plot(points, self.styles, reference_reward(self.runs), known_optima(self.groups))
            tips = {f"point{i}": point.tip for i, point in enumerate(points)}
            svg = self._write(name, plot, size)
            figures.append(plots.inline_svg(svg, name, "reward over KL, a point a method and beta", tips))
        dropped = any(key.startswith(DROPPED_ALONE) for run in self.runs for key in run.summary)
        return {
            "figures": figures,
            "lone": points[0].tip if len(points) == 1 else "",
            "has_optimum": bool(known_optima(self.groups)),
            "amounts": training_amounts(self.groups),
            "dropped": dropped,
        }

    def _methods(self) -> dict[str, Any]:
        finished = [group for group in self.groups if group.finished]
        criteria: dict[tuple[str, str], list[str]] = {}
        for method in self.best:
            if ranked := ranking_metric([group for group in finished if group.method == method]):
                criteria.setdefault((DIRECTIONS[ranked[1]], ranked[0]), []).append(method)
        colours = {name: plots.page_colour(style["color"]) for name, style in self.styles.items()}
        best = [group for group in self.best.values() if group.finished]
        several = len(finished) > len({group.method for group in finished})
        return {
            "every_beta": methods_table(finished, self.best, colours) if finished else None,
            "at_best": methods_table(best, self.best, colours) if several else None,
            "has_intervals": any(len(group.finished) > 1 for group in finished),
            "repeats": sum(len(group.all_finished) - len(group.finished) for group in finished),
            "criteria": criteria,
        }

    def _tokens(self) -> dict[str, Any]:
        trajectories, found = self._trajectories
        return {"kept": len(trajectories["rows"]), "found": found} if trajectories["rows"] else {}

    @cached_property
    def _compared(self) -> dict[str, Any]:
        """Return the methods whose answers stand side by side, as compare.js reads them; empty for fewer than two."""
        shown = [self._labelled_runs[0][place] for place in self._completions.places]
        method_of = {id(run): name for name, group in self.best.items() for run in group.plotted}
        names = list(dict.fromkeys(method_of[id(run)] for run in shown))
        if len(names) < 2:
            return {}
        reference = reference_reward(self.runs)
        return {
            "methods": [compared_method(self.best[name], self.styles[name]) for name in names],
            "method_of": [names.index(method_of[id(run)]) for run in shown],
            "seed_of": ["" if run.seed is None else str(run.seed) for run in shown],
            "reference": "" if reference is None else f"mean reward {format_number(reference)}",
        }

    def _compare(self) -> dict[str, Any]:
        return {"has_kl": any(row[LOG_RATIO] is not None for row in self._completions.rows)} if self._compared else {}

    def _shown_completions(self) -> dict[str, Any]:
        selected = self._completions
        kept = len(selected.rows)
        return {"one_run": len(self.runs) == 1, "kept": kept, "found": selected.found} if kept else {}

    def _runs(self) -> dict[str, Any]:
        configured = [run for run in self.runs if run.configured]
        differing = set(differing_keys(configured))
        config = configured[0].config if configured else {}
        common = {k: portable(setting_text(v)) for k, v in config.items() if k not in differing and is_compared(k)}
        return {
            "runs": runs_table(self.runs),
            "evaluations": evaluations_table(self.runs),
            "configured": len(configured),
            "common": list(common.items()),
        }

    def _files(self, tables: Sequence[Path]) -> dict[str, Any]:
        """Return the paths, relative to the folder, of what lies beside the page."""
        drawn = sorted({path.stem for path in (self.folder / "figures").iterdir() if path.suffix[1:] in self.formats})
        return {
            "folder": self.folder.name,
            "tables": [path.relative_to(self.folder).as_posix() for path in tables],
            "figures": [(stem, [f"figures/{stem}.{ending}" for ending in self.formats]) for stem in drawn],
        }


def _label(run: RunRecord, group: SeedGroup) -> str:
    beta = "" if group.beta is None else f" β={group.beta:g}"
    return f"{group.method}{beta}" + ("" if run.seed is None else f" seed {run.seed}")
