"""`python -m experiments.spo_offline_figures OUT` shows SPO's losses and targets on logged programs.

OUT is the directory of the study `experiments.spo_offline`. Every run is evaluated twice more: at the SPO paper's
temperature .4 and top-p .95, and on problems of the logged functions. The table of means with 95 % intervals over seeds
is printed; the picture is OUT/spo_offline.png.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.spo_arms import SHOWN, Arm, draw, evaluate_further, evaluate_reference, mean_and_half, order, read_runs
from shiqrun.console import console
from shiqrun.report.run_files import read_json

PANELS = ("val/pass@1", "val/pass@10", "logged/pass@1")
LEVELS = {
    "losses": "#1b6ca8",
    "with Monte-Carlo targets": "#c2571a",
    "on the search's rollouts alone": "#6e7781",
    "without the anchor": "#8a63d2",
}
"""Colour of every level that a loss was trained at."""
NAMES = {"spo": "terminal", "spo_nonterminal": "non-terminal", "spo_advantage": "advantage"}


def arm_of(config: dict[str, Any]) -> Arm:
    """Return the arm of a run from its resolved configuration."""
    algo = config["algo"]
    name = NAMES.get(algo["name"], algo["name"]) + (f", {algo['link'].replace('_', '-')}" if "link" in algo else "")
    if config["data"]["name"] == "jsonl":
        return Arm(name, "on the search's rollouts alone")
    if not algo["anchor"]:
        return Arm(name, "without the anchor")
    return Arm(name, "with Monte-Carlo targets" if algo["monte_carlo"] else "losses")


def table_of(arms: dict[Arm, list[dict[str, float]]], reference: dict[str, float]) -> Table:
    """Return the table of every arm's means and intervals over seeds, the reference first.

    All arms have one reference and one search, and answer the same prompts with the same random numbers.
    """
    table = Table(title="means over the seeds of training alone, with 95 % intervals", title_justify="left")
    for column in ("arm", "seeds", *SHOWN.values()):
        table.add_column(column, justify="left" if column == "arm" else "right")
    table.add_row("reference", "", *(f"{reference[name]:.3f}" if name in reference else "" for name in SHOWN))
    for arm in order(arms, LEVELS):
        cells = [mean_and_half([run[name] for run in arms[arm] if name in run]) for name in SHOWN]
        name = arm.loss if arm.level == "losses" else f"{arm.loss}, {arm.level}"
        table.add_row(name, str(len(arms[arm])), *cells)
    return table


def main(out: Path) -> None:
    """Evaluate the runs of the study, print the table and draw the picture."""
    arms: dict[Arm, list[dict[str, float]]] = defaultdict(list)
    for run, config in read_runs(out):
        arms[arm_of(config)].append(read_json(run / "summary.json") | evaluate_further(run))
    reference = evaluate_reference(out)
    console.print(table_of(arms, reference))
    draw(arms, reference, out / "spo_offline.png", LEVELS, PANELS)
    console.print(f"{out / 'spo_offline.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
