"""These functions read the games that the arms of `experiments.textgames` played, and make its tables and picture."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from rich.table import Table

from shiqrun.errors import InputError
from shiqrun.report.run_files import read_lines
from shiqrun.util.intervals import crossed_interval

matplotlib.use("Agg")
COLOURS = {"step": "#1b6ca8", "final": "#c2571a", "": "#6e7781"}
"""Colours of arms by where the rewards stand: where they were earned, at the end, or summed by the method itself."""
SHOWN = {"step": "reward at its action", "final": "all at the last action", "": "the method reads the sum"}
REFERENCE, INK = "reference", "#24292f"


@dataclass(frozen=True)
class Played:
    """A `Played` holds the games that a policy played: arrays with one entry a game, games in the order of their names.

    Attributes:
        games: names, KIND-SEED.
        returns: sums of rewards, reward units.
        won: 1 for a game that was won, else 0.
        log_ratio: sum of log pi / pi_ref over the policy's tokens, nats; NaN without a reference.
    """

    games: tuple[str, ...]
    returns: np.ndarray
    won: np.ndarray
    log_ratio: np.ndarray


@dataclass(frozen=True)
class Arm:
    """An `Arm` is a method at its chosen setting.

    Attributes:
        setting: learning rate and beta.
        seeds: what each seed's policy played, the same games in each.
    """

    setting: str
    seeds: Sequence[Played]

    def values(self, name: str) -> np.ndarray:
        """Return `returns`, `won` or `log_ratio`, `[S, P]`, of each seed and game."""
        return np.stack([getattr(seed, name) for seed in self.seeds])


def read_episodes(folder: Path) -> Played:
    """Return what the directory of an evaluation says of the games that were played.

    Raises:
        InputError: it holds no games.
    """
    rows = sorted(read_lines(folder / "episodes.jsonl"), key=lambda row: str(row["id"]))
    if not rows:
        raise InputError(f"{folder / 'episodes.jsonl'}: no played games; remove {folder} and start again")
    return Played(
        games=tuple(str(row["id"]) for row in rows),
        returns=np.array([math.fsum(row["rewards"]) for row in rows]),
        won=np.array([float(row["won"]) for row in rows]),
        log_ratio=np.array([math.nan if row["log_ratio"] is None else row["log_ratio"] for row in rows], dtype=float),
    )


def tables(found: Mapping[str, Arm], kind: str, out: Path) -> Iterator[Table]:
    """Yield a table of what every arm earned in the test games of a kind, and one of differences; CSV files too."""
    columns = ["arm", "rate, beta", "return", "won", "KL, nats"]
    yield _table(columns, [_figures(name, arm) for name, arm in found.items()], f"{kind}: test games", out / "arms.csv")
    rows = [_difference(label, found[a], found[b]) for label, a, b in _pairs(found)]
    if rows:
        columns = ["difference of returns", "all", "by seed"]
        yield _table(columns, rows, f"{kind}: seed by seed and game by game", out / "differences.csv")


def _figures(name: str, arm: Arm) -> list[str]:
    kl = "" if name == REFERENCE else plus_minus(arm.values("log_ratio"), 1)
    return [name, arm.setting, plus_minus(arm.values("returns")), plus_minus(arm.values("won")), kl]


def _difference(label: str, one: Arm, other: Arm) -> list[str]:
    less = one.values("returns") - other.values("returns")
    return [label, plus_minus(less), " ".join(f"{value:+.3f}" for value in less.mean(axis=1))]


def _pairs(found: Mapping[str, Arm]) -> Iterator[tuple[str, str, str]]:
    """Yield (label, arm, arm): `step` less `final` of each method, then every other arm less ShiQ with `step`."""
    for name in found:
        method, _, rewards = name.partition(", ")
        if rewards == "step" and f"{method}, final" in found:
            yield f"{method}: step - final", name, f"{method}, final"
    first = "shiq, step"
    for name in found if first in found else ():
        if name != first:
            yield f"{name} - {first}", name, first


def plus_minus(values: np.ndarray, digits: int = 3) -> str:
    """Return `mean ± half` of `[S, P]`, half the width of the 95 % interval over seeds and games."""
    mean, half = crossed_interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, out: Path) -> Table:
    """Return a table, and write it to a CSV file."""
    shown = Table(*columns, title=title)
    for row in rows:
        shown.add_row(*row)
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return shown


def draw(found: Mapping[str, Mapping[str, Arm]], path: Path) -> None:
    """Draw a panel for each kind of game, with a row for each arm: seeds, mean and 95 % interval."""
    names = list(dict.fromkeys(name for arms in found.values() for name in arms if name != REFERENCE))[::-1]
    size = (3.2 + 3.4 * len(found), 1.3 + 0.3 * len(names))
    figure, axes = pyplot.subplots(1, len(found), figsize=size, sharey=True, squeeze=False)
    for panel, (kind, arms) in zip(axes[0], found.items(), strict=True):
        for name in names:
            if name in arms:
                _draw_arm(panel, names.index(name), name, arms[name].values("returns"))
        panel.axvline(arms[REFERENCE].values("returns").mean(), color=INK, ls="--", lw=1)
        panel.set_title(f"{kind}: return in test games", fontsize=10)
        panel.set_yticks(range(len(names)), [name.partition(", ")[0] for name in names], fontsize=9)
        panel.set_ylim(-0.6, len(names) - 0.4)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for rewards, label in SHOWN.items():
        axes[0][0].plot([], [], "o", color=COLOURS[rewards], label=label)
    axes[0][0].plot([], [], "--", color=INK, label=REFERENCE)
    figure.legend(loc="lower center", ncols=2, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.45 / size[1], 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_arm(panel: Axes, place: int, name: str, returns: np.ndarray) -> None:
    mean, half = crossed_interval(returns)
    colour = COLOURS[name.partition(", ")[2]]
    panel.errorbar(mean, place, xerr=half, fmt="o", color=colour, capsize=3, markersize=5)
    panel.plot(returns.mean(axis=1), [place] * len(returns), "|", color=colour, alpha=0.7, markersize=9)
