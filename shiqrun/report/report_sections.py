"""`ReportSections` makes the sections of a report about runs: the values that each template of `templates/` shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shiqrun.report import plots
from shiqrun.report.completion_view import SelectedCompletions, select_completions
from shiqrun.report.csv_files import write_csv_files
from shiqrun.report.html_page import Section
from shiqrun.report.page_tables import evaluations_table, methods_table, runs_table
from shiqrun.report.run_facts import summary_values
from shiqrun.report.run_records import RunRecord
from shiqrun.report.seed_groups import (
    DIRECTIONS,
    KL,
    LOSS,
    RETURN,
    REWARD,
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

CURVES = {
    REWARD: "reward of the policy's answers",
    KL: "KL to the reference, nats a sequence",
    RETURN: "regularised return",
    "val/reward_per_turn": "reward of a turn",
    "val/official_score": "official score",
    "val/regret": "regret",
    "val/pass@1": "solved by one try",
    "val/pass@10": "solved by one of ten tries",
    "val/win_rate": "win rate against the reference",
    "val/completions/mean_length": "length of the answers, tokens",
    "val/entropy": "entropy, nats a token",
    "train/loss": "training loss",
    LOSS: "validation loss",
    "val/logratio_mean": "log-ratio on the data's tokens, nats",
}
"""The metrics with a learning curve on the page, each method at its best beta, and the titles of the curves."""
CURVES_BY_BETA = (REWARD, KL)
"""The metrics whose curves are also drawn for every beta."""
DROPPED_ALONE = "dropped/alone with its prompt"
"""The beginning of the summary's key for trajectories dropped because a method could compare them with no other."""


@dataclass
class ReportSections:
    """`ReportSections` makes the sections of one page from runs, and writes figures and CSV files into a folder.

    Attributes:
        runs: every run, in the order of their names.
        groups: the same runs by method and beta.
        folder: for figures and CSV files.
    """

    runs: list[RunRecord]
    groups: list[SeedGroup]
    folder: Path

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
        return completions | ({"tokens-data": self._trajectories[0]} if self._trajectories[0]["rows"] else {})

    def sections(self, sweeps: Sequence[dict[str, Any]], pivotal: Sequence[Section] = ()) -> list[Section]:
        """Return the page's sections that have content, in order; draw the figures and write the CSV files.

        Args:
            sweeps: `sweep.json` of each sweep.
            pivotal: the sections about searches for pivotal tokens.
        """
        tables = write_csv_files(self.folder, self.groups, self.runs, self.best)
        sections = [
            Section("summary", "Summary", summary_values(self.runs, self.groups, sweeps)),
            Section("frontier", "Reward and KL", self._frontier()),
            Section("methods", "Methods", self._methods()),
            Section("curves", "Learning curves", self._curves()),
            Section("tokens", "Credit, token by token", self._tokens()),
            *pivotal,
            Section("completions", "Completions", self._shown_completions()),
            Section("runs", "Runs and configs", self._runs()),
            Section("files", "Files", self._files(tables)),
        ]
        return [section for section in sections if section.values]

    def _draw(self, name: str, title: str, plot: plots.Plot, size: tuple[float, float]) -> Markup:
        """Write a figure of the report as files and return it as an SVG element."""
        return plots.inline_svg(plots.draw_svg(plot, size, self.folder / "figures" / name), name, title, {})

    def _frontier(self) -> dict[str, Any]:
        if not any(group.final(KL) and group.final(REWARD) for group in self.groups):
            return {"figures": []}
        figures = []
        for name, size in (("frontier", plots.WIDE), ("frontier_narrow", plots.NARROW)):
            wide = size == plots.WIDE
            plot, tips = plots.frontier_plot(self.groups, self.styles, reference_reward(self.runs), wide=wide)
            svg = plots.draw_svg(plot, size, self.folder / "figures" / name)
            figures.append(plots.inline_svg(svg, name, "reward over KL, a point a method and beta", tips))
        dropped = any(key.startswith(DROPPED_ALONE) for run in self.runs for key in run.summary)
        return {"figures": figures, "amounts": training_amounts(self.groups), "dropped": dropped}

    def _methods(self) -> dict[str, Any]:
        finished = [group for group in self.groups if group.finished]
        criteria: dict[tuple[str, str], list[str]] = {}
        for method in self.best:
            if ranked := ranking_metric([group for group in finished if group.method == method]):
                criteria.setdefault((DIRECTIONS[ranked[1]], ranked[0]), []).append(method)
        black = "#000000"  # a dark page would hide black markers
        colours = {n: "currentColor" if s["color"] == black else s["color"] for n, s in self.styles.items()}
        best = [group for group in self.best.values() if group.finished]
        several = len(finished) > len({group.method for group in finished})
        return {
            "every_beta": methods_table(finished, self.best, colours) if finished else None,
            "at_best": methods_table(best, self.best, colours) if several else None,
            "has_intervals": any(len(group.finished) > 1 for group in finished),
            "repeats": sum(len(group.all_finished) - len(group.finished) for group in finished),
            "criteria": criteria,
        }

    def _curves(self) -> dict[str, Any]:
        best = list(self.best.values())
        panels = [
            self._curve_panel(f"curve_{_file_name(metric)}", title, metric, best)
            for metric, title in CURVES.items()
            if any(group.curve(metric) for group in best)
        ]
        panels_by_beta = self._curves_by_beta()
        if not panels and not panels_by_beta:
            return {}
        return {
            "panels": panels,
            "panels_by_beta": panels_by_beta,
            "many_betas": len(self.groups) > len(self.best),
            "any_unfinished": not all(group.finished for group in best),
        }

    def _curves_by_beta(self) -> list[list[Markup]]:
        """Return the curve panels of each metric, one for each beta, with the same axis limits."""
        betas = sorted({group.beta for group in self.groups if group.beta is not None})
        panels = []
        for metric in CURVES_BY_BETA if len(betas) > 1 else ():
            limits = plots.common_limits(metric, self.groups)
            by_beta = {beta: [group for group in self.groups if group.beta == beta] for beta in betas}
            panels.append(
                [
                    self._curve_panel(
                        f"curve_{_file_name(metric)}_beta_{beta:g}",
                        f"β = {beta:g}: {CURVES[metric]}",
                        metric,
                        groups,
                        limits,
                    )
                    for beta, groups in by_beta.items()
                    if any(group.curve(metric) for group in groups)
                ]
            )
        return panels

    def _curve_panel(
        self,
        name: str,
        title: str,
        metric: str,
        groups: Sequence[SeedGroup],
        limits: tuple[float, float] | None = None,
    ) -> Markup:
        plot = plots.curve_plot(metric, groups, title, self.styles, limits)
        return self._draw(name, title, plot, plots.PANEL)

    def _tokens(self) -> dict[str, Any]:
        trajectories, found = self._trajectories
        return {"kept": len(trajectories["rows"]), "found": found} if trajectories["rows"] else {}

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
        figures = [f"figures/{svg.stem}" for svg in sorted((self.folder / "figures").glob("*.svg"))]
        return {
            "folder": self.folder.name,
            "tables": [path.relative_to(self.folder).as_posix() for path in tables],
            "figures": [(f"{stem}.svg", f"{stem}.png") for stem in figures],
        }


def _label(run: RunRecord, group: SeedGroup) -> str:
    beta = "" if group.beta is None else f" β={group.beta:g}"
    return f"{group.method}{beta}" + ("" if run.seed is None else f" seed {run.seed}")


def _file_name(metric: str) -> str:
    return metric.replace("/", "_")
