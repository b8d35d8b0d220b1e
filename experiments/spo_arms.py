"""These functions read and compare runs of the SPO studies on programs: evaluations, means over seeds, a picture."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from matplotlib import pyplot

from shiqrun.cli import main as shiqrun
from shiqrun.report.run_files import read_json
from shiqrun.util.intervals import interval

matplotlib.use("Agg")
EVALUATIONS = {
    "sharp": ("eval.temperature=0.4", "eval.top_p=0.95"),
    "logged": ("data=programs", "eval.split=train"),  # named for all runs, so that they answer the same prompts
}
"""Settings of the evaluations beside that of training, by the prefix of their metrics."""
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
"""Name of every metric in tables and pictures."""
REFERENCE_COLOUR = "#24292f"


@dataclass(frozen=True)
class Arm:
    """An `Arm` is runs that are compared as one: all seeds of a loss at a level.

    Attributes:
        loss: name of the loss and its link.
        level: what it was trained on; the levels of a study have an order and a colour each.
    """

    loss: str
    level: str

    def __str__(self) -> str:
        return f"{self.loss}, {self.level}"


def read_runs(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (directory, resolved configuration) of every finished run of a study's sweeps."""
    for path in sorted(out.glob("*/*/summary.json")):
        config = path.parent / ".hydra" / "config.yaml"
        if config.is_file() and (path.parent / "metrics.csv").is_file():
            yield path.parent, yaml.safe_load(config.read_text(encoding="utf-8"))


def evaluate(run: Path, run_dir: Path, *words: str) -> dict[str, float]:
    """Return the metrics of `shiqrun eval` with 20 completions of a prompt; an evaluation that is there is read.

    Raises:
        SystemExit: the evaluation failed; the code is the command's.
    """
    command = ["eval", f"run={run}", "reward=programs", "eval.samples_per_prompt=20", *words, f"run_dir={run_dir}"]
    if not (run_dir / "eval.json").is_file() and (code := shiqrun(command)):
        raise SystemExit(code)
    return read_json(run_dir / "eval.json")


def evaluate_further(run: Path) -> dict[str, float]:
    """Return the metrics of a run's policy in the evaluations beside that of training."""
    found: dict[str, float] = {}
    for name, words in EVALUATIONS.items():
        metrics = evaluate(run, run / name, *words)
        found |= {key.replace("eval/", f"{name}/"): value for key, value in metrics.items()}
    return found


def evaluate_reference(out: Path) -> dict[str, float]:
    """Return the pass rates of the reference in every evaluation, that of training included, on as many prompts."""
    sizes = ("eval.max_prompts=256", "eval.max_new_tokens=12", "eval.batch_size=2560")
    found: dict[str, float] = {}
    for name, words in {"val": (), **EVALUATIONS}.items():
        metrics = evaluate(out / "sft", out / "sft" / f"as_reference_{name}", *sizes, *words)
        found |= {key.replace("eval/", f"{name}/"): value for key, value in metrics.items() if "pass@" in key}
    return found


def order(arms: Iterable[Arm], levels: Iterable[str]) -> list[Arm]:
    """Return the arms of a study in the order of their levels, then of their losses' names."""
    places = [*levels]
    return sorted(arms, key=lambda arm: (places.index(arm.level), arm.loss))


def mean_and_half(values: list[float]) -> str:
    """Return `mean ± half` with the half width of the 95 % interval over seeds; empty without values."""
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}"


def draw(
    arms: dict[Arm, list[dict[str, float]]],
    reference: dict[str, float],
    path: Path,
    levels: dict[str, str],
    metrics: tuple[str, ...],
) -> None:
    """Draw a panel for each metric, with a row for each arm: seeds, mean and 95 % interval.

    Args:
        arms: metrics of the runs of every arm.
        reference: metrics of the reference, a dashed line in every panel.
        path: file of the picture.
        levels: colour of every level.
        metrics: one panel each.
    """
    rows = order(arms, levels)[::-1]
    figure, axes = pyplot.subplots(1, len(metrics), figsize=(10, 0.9 + 0.34 * len(rows)), sharey=True)
    for panel, metric in zip(axes, metrics, strict=True):
        for place, arm in enumerate(rows):
            values = [run[metric] for run in arms[arm] if metric in run]
            mean, half = interval(values)
            panel.errorbar(mean, place, xerr=half, fmt="o", color=levels[arm.level], capsize=3, markersize=5)
            panel.plot(values, [place] * len(values), "|", color=levels[arm.level], alpha=0.6, markersize=9)
        if metric in reference:
            panel.axvline(reference[metric], color=REFERENCE_COLOUR, linestyle="--", linewidth=1)
        panel.set_title(SHOWN[metric], fontsize=10)
        panel.set_yticks(range(len(rows)), [arm.loss for arm in rows], fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for level, colour in levels.items():
        axes[0].plot([], [], "o", color=colour, label=level)
    axes[0].plot([], [], "--", color=REFERENCE_COLOUR, label="reference")
    figure.legend(loc="lower center", ncols=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=150)
