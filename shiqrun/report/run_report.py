"""From runs to `report.html`: which sections there are and what they say."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import shiqrun.report.page_tables as page_tables
import shiqrun.report.plots as plots
from shiqrun.errors import InputError
from shiqrun.report.completion_view import carried
from shiqrun.report.html_page import COMPLETIONS, TOKENS, Section, folded, note, page
from shiqrun.report.pivotal_view import FILE as PIVOTAL
from shiqrun.report.pivotal_view import pivotal_section
from shiqrun.report.run_facts import failures, summary, title
from shiqrun.report.run_records import Collection, Run, collect
from shiqrun.report.seed_groups import (
    KL,
    LOSS,
    RETURN,
    REWARD,
    WAYS,
    Group,
    best,
    compared,
    criterion,
    differing,
    grouped,
    reference_reward,
    trained_on,
)
from shiqrun.report.token_view import credited

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
"""The curves on the page, each method's at its best beta."""
OVER_SEEDS = (
    "All seeds answer the same validation prompts with the same evaluation seed (eval.seed), so intervals over seeds "
    "do not include the prompts' own variation; val/reward_ci95 of each run, in runs.csv, is over its prompts."
)
ALONE = "dropped/alone with its prompt"
"""How the summary counts rows that a method could compare with nothing."""
BY_BETA = (REWARD, KL)
"""The curves that are also drawn for every beta."""


def write_report(directories: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page about all runs in and below the directories, its figures and its numbers.

    Args:
        directories: run directories, sweep directories, folders of them, or searches of `shiqrun pivotal`.
        out: the page, by default `report.html` in the first directory. Beside it a folder with the page's name less its
            ending gets `figures/*.png`, `figures/*.svg` and the numbers as `*.csv`.

    Returns:
        The page's path.

    Raises:
        InputError: there is nothing to report on, a file is broken, or the page cannot be written.
    """
    searches = [section for directory in directories if (section := pivotal_section(directory))]
    runs = [directory for directory in directories if not (directory / PIVOTAL).is_file()]
    collection = collect(runs) if runs or not searches else Collection([], [])
    out = directories[0] / "report.html" if out is None else out
    beside = out.with_suffix("")
    if out.is_dir() or not out.suffix:
        raise InputError(f"--out {out}: a directory or a name without ending; give a file such as report.html")
    try:
        (beside / "figures").mkdir(parents=True, exist_ok=True)
        for old in (*(beside / "figures").glob("frontier*"), *(beside / "figures").glob("curve_*")):
            old.unlink()
        report = Report(collection.runs, grouped(collection.runs), beside)
        about = [sweep.about for sweep in collection.sweeps]
        html = (
            report.html(about, searches)
            if collection.runs
            else page("Pivotal tokens", str(directories[0]), searches, {})
        )
        partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        partial.write_text(html, encoding="utf-8", errors="replace")
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error}); choose another place with --out FILE") from None
    return out


@dataclass
class Report:
    """The sections of one page.

    Attributes:
        runs: all of them.
        groups: the same by method and beta.
        folder: for figures and tables in files.
    """

    runs: list[Run]
    groups: list[Group]
    folder: Path

    @cached_property
    def best(self) -> dict[str, Group]:
        """Each method's best beta."""
        return best(self.groups)

    @cached_property
    def looks(self) -> dict[str, dict[str, Any]]:
        """Each method's colour, marker and dashes."""
        return plots.styles(list(self.best))

    def html(self, sweeps: Sequence[dict[str, Any]], further: Sequence[Section] = ()) -> str:
        """The whole page with further sections; draws and writes the figures and tables on the way."""
        csv = page_tables.write_csv(self.folder, self.groups, self.runs, self.best)
        shown = [run for group in self.best.values() for run in group.drawn]
        labels = [self._label(run, group) for group in self.best.values() for run in group.drawn]
        completions = carried(shown, labels)
        tokens, trajectories = credited(shown, labels)
        sections = [
            Section("summary", "Summary", summary(self.runs, self.groups, sweeps) + failures(self.runs)),
            Section("frontier", "Reward and KL", self._frontier()),
            Section("methods", "Methods", self._methods()),
            Section("curves", "Learning curves", self._curves() + self._curves_by_beta()),
            Section("tokens", "Credit, token by token", self._tokens(tokens, trajectories)),
            *further,
            Section("completions", "Completions", self._completions(completions.found, len(completions.rows))),
            Section("runs", "Runs and configs", self._runs()),
            Section("files", "Files", self._files(csv)),
        ]
        data: dict[str, Any] = {"completions-data": completions.payload()} if completions.rows else {}
        data |= {"tokens-data": tokens} if tokens["rows"] else {}
        return page(*title(self.runs), sections, data)

    def _label(self, run: Run, group: Group) -> str:
        beta = "" if group.beta is None else f" β={group.beta:g}"
        return f"{group.method}{beta}" + ("" if run.seed is None else f" seed {run.seed}")

    def _figure(self, name: str, alternative: str, drawn: plots.Draw, size: tuple[float, float]) -> str:
        svg = plots.draw(drawn, size, self.folder / "figures" / name)
        return f"<figure>{plots.inlined(svg, name, alternative, {})}</figure>"

    def _frontier(self) -> str:
        if not any(group.final(KL) and group.final(REWARD) for group in self.groups):
            return note(
                "No finished run has val/reward and val/kl: set eval.reward to have answers sampled and scored."
            )
        pages = []
        for wide, size in ((True, plots.WIDE), (False, plots.NARROW)):
            drawn, tips = plots.frontier(self.groups, self.looks, reference_reward(self.runs), wide=wide)
            name = "frontier" if wide else "frontier_narrow"
            drawn_once = plots.draw(drawn, size, self.folder / "figures" / name)
            svg = plots.inlined(drawn_once, name, "reward over KL, a point a method and beta", tips)
            pages.append(f'<figure class="one {"wide" if wide else "narrow"}">{svg}</figure>')
        words = (
            "A point is one method at one β: the mean over seeds of the final reward and KL, with 95 % intervals over "
            "seeds in both directions. Points of a method are joined in the order of β; a larger marker is a larger β. "
            "The cross is the reference at KL 0. Up and to the left is better."
        )
        rows = self._rows()
        return note(words) + note(OVER_SEEDS) + (note(rows) if rows else "") + "".join(pages)

    def _rows(self) -> str:
        """Which methods trained on how much, where they differ."""
        trained = trained_on(self.groups)
        if len(trained) < 2:
            return ""
        parts = "; ".join(f"{', '.join(methods)} on {much}" for much, methods in trained.items())
        dropped = any(key.startswith(ALONE) for run in self.runs for key in run.summary)
        why = " (those that compare completions drop rows that are alone with their prompt)" if dropped else ""
        return f"Not all methods trained on the same amount{why}: {parts}."

    def _methods(self) -> str:
        done = [group for group in self.groups if group.finished]
        if not done:
            return note("No run has finished yet.")
        by: dict[tuple[str, int], list[str]] = {}
        for method in self.best:
            if ranked := criterion([group for group in done if group.method == method]):
                by.setdefault(ranked, []).append(method)
        choice = " or ".join(
            f"{WAYS[sign]} mean final {metric}" + f" ({', '.join(methods)})" * (len(by) > 1)
            for (metric, sign), methods in by.items()
        )
        words = "Mean over seeds of the numbers at the end of each finished run ± half of the 95 % interval over seeds"
        words += "." if any(len(g.finished) > 1 for g in done) else ": none with one seed."
        if repeated := sum(len(g.ended) - len(g.finished) for g in done):
            words += f" {repeated} finished runs have the settings and seed of a later one, which counts instead."
        colours = {
            name: "currentColor" if look["color"] == "#000000" else look["color"] for name, look in self.looks.items()
        }
        if len(done) == len({g.method for g in done}):
            return note(words) + page_tables.methods_table(done, self.best, colours)
        words += (
            f" A method's best β has the {choice} over seeds (not the best regularised return, which holds β itself). "
            "It was chosen on the prompts that are reported here, so its numbers are optimistic."
        )
        at_best = page_tables.methods_table([g for g in self.best.values() if g.finished], self.best, colours)
        every = page_tables.methods_table(done, self.best, colours)
        return f"{note(words)}<h3>Each method at its best β</h3>{at_best}<h3>Every β, the best in bold</h3>{every}"

    def _curves(self) -> str:
        chosen = list(self.best.values())
        panels = [
            self._figure(
                f"curve_{metric.replace('/', '_')}",
                said,
                plots.curves(metric, chosen, said, self.looks),
                plots.PANEL,
            )
            for metric, said in CURVES.items()
            if any(group.curve(metric) for group in chosen)
        ]
        words = "Mean over seeds with the 95 % interval"
        words += ", each method at its best β." if len(self.groups) > len(self.best) else "."
        if not all(group.finished for group in chosen):
            words += " Methods of which no run has finished are drawn as far as they are."
        return note(words) + f'<div class="panels">{"".join(panels)}</div>' if panels else ""

    def _curves_by_beta(self) -> str:
        betas = sorted({group.beta for group in self.groups if group.beta is not None})
        made = ""
        for metric in BY_BETA if len(betas) > 1 else ():
            limits = plots.common_limits(metric, self.groups)
            panels = []
            for beta in betas:
                same = [group for group in self.groups if group.beta == beta]
                said = f"β = {beta:g}: {CURVES[metric]}"
                if any(group.curve(metric) for group in same):
                    drawn = plots.curves(metric, same, said, self.looks, limits)
                    name = f"curve_{metric.replace('/', '_')}_beta_{beta:g}"
                    panels.append(self._figure(name, said, drawn, plots.PANEL))
            made += f'<div class="panels">{"".join(panels)}</div>'
        return folded("reward and KL at every β", made) if made else ""

    def _tokens(self, tokens: dict[str, Any], trajectories: int) -> str:
        if not tokens["rows"]:
            return ""
        words = (
            "What each run learned at each token of a few trajectories. Point at a token, or tap it for its numbers."
        )
        if len(tokens["rows"]) < trajectories:
            words += f" {len(tokens['rows'])} of {trajectories} trajectories are here; the others are in credit.jsonl."
        return note(words) + TOKENS

    def _completions(self, found: int, kept: int) -> str:
        if not kept:
            return ""
        words = (
            "Every evaluation of the run."
            if len(self.runs) == 1
            else "The last evaluation of each run at its method's best β."
        )
        if kept < found:
            words += f" {kept:,} of {found:,} completions are here, evenly over runs."
        return note(f"{words} All completions are in each run's samples.jsonl.") + COMPLETIONS

    def _runs(self) -> str:
        made = page_tables.runs_table(self.runs)
        if evaluated := page_tables.evaluations_table(self.runs):
            made += "<h3>Evaluations by <code>shiqrun eval</code></h3>" + evaluated
        configured = [run for run in self.runs if run.configured]
        if configured:
            apart = set(differing(configured))
            common = {k: v for k, v in configured[0].config.items() if k not in apart and compared(k)}
            words = "the config" if len(configured) == 1 else f"the {len(common)} settings that all runs have in common"
            made += folded(words, page_tables.config_table(common))
        return made

    def _files(self, csv: Sequence[Path]) -> str:
        """Links to what lies beside the page."""
        drawn = sorted((self.folder / "figures").glob("*.svg"))
        where = self.folder.name

        def link(path: Path) -> str:
            inside = path.relative_to(self.folder).as_posix()
            return f'<a href="{quote(f"{where}/{inside}")}">{escape(path.name)}</a>'

        numbers = ", ".join(map(link, csv))
        pictures = "".join(f"<li>{link(p)}, {link(p.with_suffix('.png'))}</li>" for p in drawn)
        return f"<p>Numbers: {numbers}</p>{folded(f'{len(drawn)} figures', f'<ul>{pictures}</ul>')}" + note(
            f"These lie in the folder {where} beside this page; the page itself needs none of them."
        )
