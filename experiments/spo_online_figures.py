"""`python -m experiments.spo_online_figures OUT` shows learning while sampling on programs in tables and pictures.

OUT is the directory of the study `experiments.spo_online`. The runs of whole methods are evaluated twice more, as
`experiments.spo_arms` says. Two tables of means with 95 % intervals over seeds are printed, of the methods and of SPO's
parts; the pictures are OUT/spo_methods.png (curves with bands) and OUT/spo_parts.png.
"""

import csv
import sys
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from rich.table import Table

from experiments.spo_arms import (
    REFERENCE_COLOUR,
    SHOWN,
    Arm,
    draw,
    evaluate_further,
    evaluate_reference,
    mean_and_half,
    read_runs,
)
from shiqrun.console import console
from shiqrun.report.run_files import read_json
from shiqrun.util.intervals import interval

METHODS = {"half", "online", "half_warm", "online_warm", "ppo", "grpo", "rloo", "oapl", "copg", "shiq", "updates"}
"""Sweeps of whole methods; the others change one part of SPO, whose usual form is the sweep `half`."""
PREPARED = {"sft", "values", "pivotal"}
"""Directories of the study that are no sweeps."""
STEPS = "optimiser steps (of PPO, GRPO, RLOO four updates each)"
COLUMNS = {
    **{metric: SHOWN[metric] for metric in ("val/pass@1", "val/pass@10")},
    "val/solutions_distinct": "distinct solutions",
    **{metric: name for metric, name in SHOWN.items() if not metric.startswith("val/pass")},
    "to_goal": "seconds to the goal",
    "val/seconds_training": "seconds",
    "rollout/weight_transfers": "transfers",
    "megabytes": "MB",
}
"""Name of every metric in the tables; `to_goal` and `megabytes` are computed by `figures_of`."""
LOGGED, MONTE_CARLO, ROLLOUTS = (
    "half logged",
    "a quarter logged, a quarter Monte-Carlo",
    "a quarter logged, a quarter search",
)
LEVELS = {LOGGED: "#1b6ca8", MONTE_CARLO: "#c2571a", ROLLOUTS: "#6e7781"}
PARTS = ("val/pass@1", "val/pass@10", "val/regularised_return")
CURVES = {
    "val/pass@1": "pass@1",
    "val/pass@10": "pass@10",
    "val/solutions_distinct": "distinct right solutions a problem",
    "val/regularised_return": "regularised return",
}
GOAL = "val/pass@10", 0.02
"""The metric and the rise over the reference that a run must reach; `to_goal` is the seconds of training until then."""
COLOURS = (
    "#1b6ca8",
    "#c2571a",
    "#3a7d44",
    "#8a63d2",
    "#6e7781",
    "#b8860b",
    "#a23b72",
    "#24292f",
    "#17a2b8",
    "#d4a017",
    "#7f5539",
)
NAMES = {"ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO", "oapl": "OAPL", "copg": "CoPG", "shiq": "ShiQ"}
NAMES |= {"spo": "SPO", "spo_nonterminal": "SPO, non-terminal"}
USUAL = {"ppo": 1, "grpo": 1, "rloo": 1, "oapl": 50}
"""Optimiser steps between two sets of weights that a method usually has here; 10 of the others."""
PARTS_OF_SPO = {"spo": "terminal", "spo_nonterminal": "non-terminal", "spo_advantage": "advantage"}


def method_of(config: dict[str, Any]) -> str:
    """Return the name of a run's method: the loss, the sources of its trajectories, the temperature of sampling."""
    algo, rollout = config["algo"], config["rollout"]
    name = NAMES.get(algo["name"], algo["name"]) + (", cross-entropy" if algo.get("link") == "cross_entropy" else "")
    sources = {source: weight for source, weight in rollout["sources"].items() if weight} if rollout["offline"] else {}
    mixed = {"logged": "half online", "replay": "replay"}
    how = [mixed.get(source, source) for source in sources] or ["online"]
    interval_of_weights = rollout["model_update_interval"]
    more = "" if interval_of_weights == USUAL.get(algo["name"], 10) else f", weights every {interval_of_weights}"
    cold = rollout["temperature"][0] < 1
    return f"{name}, {' and '.join(how)}, {'cold' if cold else 'T 1'}{more}"


def part_of(config: dict[str, Any]) -> Arm:
    """Return the arm of a run that changes one part of SPO."""
    algo, rollout = config["algo"], config["rollout"]
    name = PARTS_OF_SPO[algo["name"]] + (f", {algo['link'].replace('_', '-')}" if "link" in algo else "")
    name += f", anchor {algo['anchor']:g}" if algo["anchor"] else ""
    if rollout["sources"].get("annotated"):
        return Arm(name, MONTE_CARLO)
    return Arm(name, ROLLOUTS if rollout["sources"].get("further") else LOGGED)


def read_evaluations(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.csv at which the policy was evaluated."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if GOAL[0] in row]


def figures_of(run: Path, goal: float, *, further: bool) -> dict[str, float]:
    """Return the metrics of a run that the tables show.

    Args:
        run: directory of the run.
        goal: value of the metric of GOAL that `to_goal` counts the seconds to.
        further: also evaluate at another temperature and on the logged functions.
    """
    found = read_json(run / "summary.json") | (evaluate_further(run) if further else {})
    reached = [row["val/seconds_training"] for row in read_evaluations(run) if row[GOAL[0]] >= goal]
    megabytes = found["rollout/weight_bytes"] / 2**20
    return found | {"megabytes": megabytes} | ({"to_goal": reached[0]} if reached else {})


def table_of(title: str, arms: dict[str, list[dict[str, float]]], reference: dict[str, float]) -> Table:
    """Return a table of every arm's means over seeds with intervals; the goal's column counts runs that reached it."""
    table = Table(title=f"{title}; means over the seeds of training alone, 95 % intervals", title_justify="left")
    columns = [name for name in COLUMNS if any(name in run for runs in arms.values() for run in runs)]
    for column in ("arm", "seeds", *(COLUMNS[name] for name in columns)):
        table.add_column(column, justify="left" if column == "arm" else "right")
    table.add_row("reference", "", *(f"{reference[name]:.3f}" if name in reference else "" for name in columns))
    for name, runs in sorted(arms.items()):
        cells = {column: mean_and_half([run[column] for run in runs if column in run]) for column in columns}
        if "to_goal" in cells:
            cells["to_goal"] += f" ({sum('to_goal' in run for run in runs)} of {len(runs)})"
        table.add_row(name, str(len(runs)), *cells.values())
    return table


def draw_curves(methods: dict[str, list[Path]], reference: dict[str, float], path: Path) -> None:
    """Draw a panel for each metric of CURVES over optimiser steps: means over seeds, bands of 95 % intervals."""
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.6))
    shown = [(name, runs) for name, runs in sorted(methods.items()) if "weights every" not in name]
    for (metric, title), panel in zip(CURVES.items(), axes.flat, strict=True):
        for (name, runs), colour in zip(shown, cycle(COLOURS), strict=False):
            draw_curve(panel, [read_evaluations(run) for run in runs], metric, name, colour)
        if metric in reference:
            panel.axhline(reference[metric], color=REFERENCE_COLOUR, linestyle="--", linewidth=1)
        panel.set_xlabel(STEPS, fontsize=9)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=150)


def draw_curve(panel: Any, seeds: list[list[dict[str, float]]], metric: str, name: str, colour: str) -> None:
    """Draw the mean of a metric over seeds and its 95 % interval, as far as every seed was evaluated."""
    points = min(map(len, seeds))
    steps = np.array([[row["step"] for row in rows[:points]] for rows in seeds]).mean(0)
    found = [interval([rows[i][metric] for rows in seeds]) for i in range(points)]
    mean, half = np.array(found, float).T
    panel.plot(steps, mean, color=colour, label=name, linewidth=1.8)
    panel.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.1, linewidth=0)


def main(out: Path) -> None:
    """Evaluate the runs of the study, print the tables and draw the pictures."""
    reference = evaluate_reference(out)
    goal = reference[GOAL[0]] + GOAL[1]
    methods: dict[str, list[Path]] = defaultdict(list)
    parts: dict[Arm, list[Path]] = defaultdict(list)
    for run, config in read_runs(out):
        sweep = run.parent.name
        if sweep in METHODS:
            methods[method_of(config)].append(run)
        if sweep == "half" or sweep not in METHODS | PREPARED:
            parts[part_of(config)].append(run)
    by_method = {name: [figures_of(run, goal, further=True) for run in runs] for name, runs in methods.items()}
    by_part = {arm: [figures_of(run, goal, further=False) for run in runs] for arm, runs in parts.items()}
    console.print(table_of(f"methods; the goal is pass@10 of {goal:.3f}", by_method, reference))
    if by_part:
        console.print(table_of("SPO's parts, half online", {str(arm): by_part[arm] for arm in by_part}, reference))
        draw(by_part, reference, out / "spo_parts.png", LEVELS, PARTS)
    draw_curves(methods, reference, out / "spo_methods.png")
    console.print(f"{out / 'spo_methods.png'}\n{out / 'spo_parts.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
