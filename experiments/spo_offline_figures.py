"""SPO's parts offline, on data=programs: `python -m bench.programs OUT`, after `make spo-offline SPO_OUT=OUT`.

Reads every run of OUT's sweeps, evaluates each twice more (at the SPO paper's temperature .4 and top-p .95, and on
problems of the logged functions), prints a table of means with 95 % intervals over seeds, and draws them:
OUT/spo_offline.png.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from matplotlib import pyplot
from rich.table import Table

from shiqrun.cli import main as shiqrun
from shiqrun.console import console
from shiqrun.report.run_files import read_json
from shiqrun.util.intervals import interval

matplotlib.use("Agg")
EVALUATIONS = {
    "sharp": ("eval.temperature=0.4", "eval.top_p=0.95"),
    "logged": ("data=programs", "eval.split=train"),  # of data=programs for all, that they answer the same prompts
}
SHOWN = {
    "val/pass@1": "pass@1",
    "val/pass@10": "pass@10",
    "val/kl": "KL",
    "val/regularised_return": "regularised return",
    "sharp/pass@1": "pass@1, sharp",
    "sharp/pass@10": "pass@10, sharp",
    "logged/pass@1": "pass@1, logged functions",
    "logged/pass@10": "pass@10, logged functions",
}
PANELS = ("val/pass@1", "val/pass@10", "logged/pass@1")
LEVEL = {
    "losses": "#1b6ca8",
    "with Monte-Carlo targets": "#c2571a",
    "on the search's rollouts alone": "#6e7781",
    "without the anchor": "#8a63d2",
}


@dataclass(frozen=True)
class Arm:
    """What is compared: a loss, and what it is trained on."""

    loss: str
    level: str

    def __str__(self) -> str:
        return self.loss if self.level == "losses" else f"{self.loss}, {self.level}"


def arm_of(config: dict[str, Any]) -> Arm:
    """The arm of a run."""
    algo = config["algo"]
    loss = {"spo": "terminal", "spo_nonterminal": "non-terminal", "spo_advantage": "advantage"}.get(algo["name"])
    name = (loss or algo["name"]) + (f", {algo['link'].replace('_', '-')}" if "link" in algo else "")
    if config["data"]["name"] == "jsonl":
        return Arm(name, "on the search's rollouts alone")
    if not algo["anchor"]:
        return Arm(name, "without the anchor")
    return Arm(name, "with Monte-Carlo targets" if algo["monte_carlo"] else "losses")


def evaluated(run: Path) -> dict[str, float]:
    """The further evaluations of a policy, which are made where they are missing."""
    found = {}
    for name, words in EVALUATIONS.items():
        where = run / name
        asked = ["eval", f"run={run}", "reward=programs", "eval.samples_per_prompt=20", *words, f"run_dir={where}"]
        if not (where / "eval.json").is_file() and (code := shiqrun(asked)):
            raise SystemExit(code)
        found |= {key.replace("eval/", f"{name}/"): value for key, value in read_json(where / "eval.json").items()}
    return found


def main(out: str) -> None:
    """Table and picture."""
    arms: dict[Arm, list[dict[str, float]]] = defaultdict(list)
    for path in sorted(Path(out).glob("*/*/summary.json")):
        run = path.parent
        if (run / ".hydra" / "config.yaml").is_file() and (run / "metrics.csv").is_file():
            config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
            arms[arm_of(config)].append(read_json(path) | evaluated(run))
    start = reference(Path(out))
    # One reference, one search, and all answer the same prompts with the same random numbers
    table = Table(title="means over the seeds of training alone, with 95 % intervals", title_justify="left")
    for column in ("arm", "seeds", *SHOWN.values()):
        table.add_column(column, justify="left" if column == "arm" else "right")
    table.add_row("reference", "", *(f"{start[name]:.3f}" if name in start else "" for name in SHOWN))
    for arm in ordered(arms):
        cells = [plus_minus([run[name] for run in arms[arm] if name in run]) for name in SHOWN]
        table.add_row(str(arm), str(len(arms[arm])), *cells)
    console.print(table)
    draw(arms, start, Path(out) / "spo_offline.png")
    console.print(f"{Path(out) / 'spo_offline.png'}")


def reference(out: Path) -> dict[str, float]:
    """The same numbers of the policy that all runs began with, on as many prompts."""
    with_all = ("eval.max_prompts=256", "eval.max_new_tokens=12", "eval.batch_size=2560")
    found = {}
    for name, words in {"val": (), **EVALUATIONS}.items():
        where = out / "sft" / f"as_reference_{name}"
        asked = ["eval", f"run={out / 'sft'}", "reward=programs", "eval.samples_per_prompt=20", *with_all, *words]
        if not (where / "eval.json").is_file() and (code := shiqrun([*asked, f"run_dir={where}"])):
            raise SystemExit(code)
        numbers = read_json(where / "eval.json")
        found |= {key.replace("eval/", f"{name}/"): value for key, value in numbers.items() if "pass@" in key}
    return found


def ordered(arms: Any, levels: dict[str, str] = LEVEL) -> list[Arm]:
    """Losses first, then the same with targets, then the control."""
    return sorted(arms, key=lambda arm: ([*levels].index(arm.level), arm.loss))


def plus_minus(values: list[float]) -> str:
    """`mean ± half`."""
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}"


def draw(
    arms: dict[Arm, list[dict[str, float]]],
    start: dict[str, float],
    path: Path,
    levels: dict[str, str] = LEVEL,
    panels: tuple[str, ...] = PANELS,
) -> None:
    """A row an arm, a panel a figure, a colour a level; the reference is a dashed line."""
    rows = ordered(arms, levels)[::-1]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(10, 0.9 + 0.34 * len(rows)), sharey=True)
    for panel, metric in zip(axes, panels, strict=True):
        for place, arm in enumerate(rows):
            values = [run[metric] for run in arms[arm] if metric in run]
            mean, half = interval(values)
            panel.errorbar(mean, place, xerr=half, fmt="o", color=levels[arm.level], capsize=3, markersize=5)
            panel.plot(values, [place] * len(values), "|", color=levels[arm.level], alpha=0.6, markersize=9)
        if metric in start:
            panel.axvline(start[metric], color="#24292f", linestyle="--", linewidth=1)
        panel.set_title(SHOWN[metric], fontsize=10)
        panel.set_yticks(range(len(rows)), [arm.loss for arm in rows], fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for level, colour in levels.items():
        axes[0].plot([], [], "o", color=colour, label=level)
    axes[0].plot([], [], "--", color="#24292f", label="reference")
    figure.legend(loc="lower center", ncols=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
