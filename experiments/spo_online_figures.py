"""Learning while sampling, on data=programs: `python -m bench.spo OUT`, after `make spo SPO_OUT=OUT`.

Reads every run of OUT's sweeps and evaluates those of whole methods twice more, as `bench.programs` does. Prints two
tables of means with 95 % intervals over seeds, of the methods and of SPO's parts, and draws OUT/spo_methods.png (curves
with bands) and OUT/spo_parts.png.
"""

import csv
import sys
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib import pyplot
from rich.table import Table

from bench.programs import Arm, evaluated, plus_minus, reference
from bench.programs import draw as draw_parts
from shiqrun.console import console
from shiqrun.report.run_files import read_json
from shiqrun.util.intervals import interval

matplotlib.use("Agg")
METHODS = {"half", "online", "half_warm", "online_warm", "ppo", "copg", "shiq", "updates"}
"""Sweeps of whole methods; the others take SPO apart, as half does."""
STEPS = "optimiser steps (of PPO four updates each)"
LEFT_OUT = {"sft", "values", "pivotal"}
COLUMNS = {
    "val/pass@1": "pass@1",
    "val/pass@10": "pass@10",
    "val/solutions_distinct": "distinct solutions",
    "val/kl": "KL",
    "val/regularised_return": "regularised return",
    "sharp/pass@1": "pass@1, sharp",
    "sharp/pass@10": "pass@10, sharp",
    "logged/pass@1": "pass@1, logged functions",
    "logged/pass@10": "pass@10, logged functions",
    "to_goal": "seconds to the goal",
    "val/seconds_training": "seconds",
    "rollout/weight_transfers": "transfers",
    "megabytes": "MB",
}
LOGGED, MONTE_CARLO, ROLLOUTS = (
    "half logged",
    "a quarter logged, a quarter Monte-Carlo",
    "a quarter logged, a quarter search",
)
LEVELS = {LOGGED: "#1b6ca8", MONTE_CARLO: "#c2571a", ROLLOUTS: "#6e7781"}
PARTS = ("val/pass@1", "val/pass@10", "val/regularised_return")
CURVES = (
    ("step", "val/pass@1", STEPS, "pass@1"),
    ("step", "val/pass@10", STEPS, "pass@10"),
    ("step", "val/solutions_distinct", STEPS, "distinct right solutions a problem"),
    ("step", "val/regularised_return", STEPS, "regularised return"),
)
GOAL = "val/pass@10", 0.02
"""What `to_goal` counts the seconds to: so much above the reference's."""
COLOURS = ("#1b6ca8", "#c2571a", "#3a7d44", "#8a63d2", "#6e7781", "#b8860b", "#a23b72", "#24292f")
NAMES = {"ppo": "PPO", "copg": "CoPG", "shiq": "ShiQ", "spo": "SPO", "spo_nonterminal": "SPO, non-terminal"}


def method_of(config: dict[str, Any]) -> str:
    """The method of a run, as the table names it."""
    algo, rollout = config["algo"], config["rollout"]
    name = NAMES.get(algo["name"], algo["name"]) + (", cross-entropy" if algo.get("link") == "cross_entropy" else "")
    sources = {source: weight for source, weight in rollout["sources"].items() if weight} if rollout["offline"] else {}
    mixed = {"logged": "half online", "replay": "replay"}
    how = [mixed.get(source, source) for source in sources] or ["online"]
    every = rollout["model_update_interval"]
    more = "" if every == (1 if algo["name"] == "ppo" else 10) else f", weights every {every}"
    cold = rollout["temperature"][0] < 1
    return f"{name}, {' and '.join(how)}, {'cold' if cold else 'T 1'}{more}"


def part_of(config: dict[str, Any]) -> Arm:
    """The arm of a run that takes SPO apart."""
    algo, rollout = config["algo"], config["rollout"]
    loss = {"spo": "terminal", "spo_nonterminal": "non-terminal", "spo_advantage": "advantage"}[algo["name"]]
    name = loss + (f", {algo['link'].replace('_', '-')}" if "link" in algo else "")
    name += f", anchor {algo['anchor']:g}" if algo["anchor"] else ""
    if rollout["sources"].get("annotated"):
        return Arm(name, MONTE_CARLO)
    return Arm(name, ROLLOUTS if rollout["sources"].get("further") else LOGGED)


def evaluations(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv at which the policy was evaluated."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if GOAL[0] in row]


def measured(run: Path, goal: float, *, further: bool) -> dict[str, float]:
    """What the tables show of a run; `further`: also at another temperature, and on logged functions."""
    found = read_json(run / "summary.json") | (evaluated(run) if further else {})
    reached = [row["val/seconds_training"] for row in evaluations(run) if row[GOAL[0]] >= goal]
    megabytes = found["rollout/weight_bytes"] / 2**20
    return found | {"megabytes": megabytes} | ({"to_goal": reached[0]} if reached else {})


def main(out: str) -> None:
    """Tables and pictures."""
    start, place = reference(Path(out)), Path(out)
    goal = start[GOAL[0]] + GOAL[1]
    methods: dict[str, list[Path]] = defaultdict(list)
    parts: dict[Arm, list[Path]] = defaultdict(list)
    for path in sorted(place.glob("*/*/summary.json")):
        run = path.parent
        if not (run / ".hydra" / "config.yaml").is_file() or not (run / "metrics.csv").is_file():
            continue
        config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
        if run.parent.name in METHODS:
            methods[method_of(config)].append(run)
        if run.parent.name == "half" or run.parent.name not in METHODS | LEFT_OUT:
            parts[part_of(config)].append(run)
    numbers = {name: [measured(run, goal, further=True) for run in runs] for name, runs in methods.items()}
    of_parts = {arm: [measured(run, goal, further=False) for run in runs] for arm, runs in parts.items()}
    console.print(tabled(f"methods; the goal is pass@10 of {goal:.3f}", numbers, start))
    if of_parts:
        console.print(tabled("SPO's parts, half online", {str(arm): runs for arm, runs in of_parts.items()}, start))
        draw_parts(of_parts, start, place / "spo_parts.png", LEVELS, PARTS)
    draw_curves(methods, start, place / "spo_methods.png")
    console.print(f"{place / 'spo_methods.png'}\n{place / 'spo_parts.png'}")


def tabled(title: str, arms: dict[str, list[dict[str, float]]], start: dict[str, float]) -> Table:
    """Means with intervals over seeds; in the column of the goal also how many runs reached it."""
    table = Table(title=f"{title}; means over the seeds of training alone, 95 % intervals", title_justify="left")
    columns = [name for name in COLUMNS if any(name in run for runs in arms.values() for run in runs)]
    for column in ("arm", "seeds", *(COLUMNS[name] for name in columns)):
        table.add_column(column, justify="left" if column == "arm" else "right")
    table.add_row("reference", "", *(f"{start[name]:.3f}" if name in start else "" for name in columns))
    for name, runs in sorted(arms.items()):
        cells = {column: plus_minus([run[column] for run in runs if column in run]) for column in columns}
        if "to_goal" in cells:
            cells["to_goal"] += f" ({sum('to_goal' in run for run in runs)} of {len(runs)})"
        table.add_row(name, str(len(runs)), *cells.values())
    return table


def draw_curves(methods: dict[str, list[Path]], start: dict[str, float], path: Path) -> None:
    """Four panels; a line is the mean over seeds, its band the 95 % interval."""
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.6))
    for (x, y, x_name, y_name), panel in zip(CURVES, axes.flat, strict=True):
        shown = [(name, runs) for name, runs in sorted(methods.items()) if "weights every" not in name]
        for (name, runs), colour in zip(shown, cycle(COLOURS), strict=False):
            rows = [evaluations(run) for run in runs]
            points = min(map(len, rows))
            across = np.array([[row[x] for row in of_run[:points]] for of_run in rows]).mean(0)
            found = [interval([of_run[i][y] for of_run in rows]) for i in range(points)]
            mean, half = np.array(found, float).T
            panel.plot(across, mean, color=colour, label=name, linewidth=1.8)
            panel.fill_between(across, mean - half, mean + half, color=colour, alpha=0.1, linewidth=0)
        if y in start:
            panel.axhline(start[y], color="#24292f", linestyle="--", linewidth=1)
        panel.set_xlabel(x_name, fontsize=9)
        panel.set_title(y_name, fontsize=10)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
