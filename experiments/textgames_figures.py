"""These functions read the games that the arms of `experiments.textgames` played, and make its tables and picture."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from rich.table import Table

from shiqrun.errors import InputError
from shiqrun.report.run_files import read_lines
from shiqrun.util.intervals import crossed_interval

matplotlib.use("Agg")
COLOURS = {"step": "#1b6ca8", "final": "#c2571a", "": "#6e7781"}
"""Colours of arms by where the rewards stand: where they were earned, at the end, or summed by the method itself."""
SHOWN = {"step": "reward at its action", "final": "all at the last action", "": "the method reads the sum"}
REFERENCE = "reference"


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

    def returns(self) -> np.ndarray:
        """Return the sums of rewards `[S, P]` of each seed and game."""
        return np.stack([seed.returns for seed in self.seeds])

    def values(self, name: str) -> np.ndarray:
        """Return `returns`, `won` or `log_ratio`, `[S, P]`."""
        return np.stack([getattr(seed, name) for seed in self.seeds])

    def of(self, kind: str) -> list[int]:
        """Return the places of the games of a kind."""
        return [i for i, game in enumerate(self.seeds[0].games) if game.rpartition("-")[0] == kind]

    def kinds(self) -> list[str]:
        """Return the kinds of games that were played."""
        return list(dict.fromkeys(game.rpartition("-")[0] for game in self.seeds[0].games))


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


def tables(found: Mapping[str, Arm], out: Path) -> Iterator[Table]:
    """Yield a table of what every arm earned in the test games, and one of differences; both go to CSV files too."""
    kinds = next(iter(found.values())).kinds()
    columns = ["return", "won", *(f"return, {kind}" for kind in kinds), "KL, nats"]
    rows = [[name, arm.setting, *_figures(arm, kinds)] for name, arm in found.items()]
    yield _table(["arm", "rate, beta", *columns], rows, "test games", out / "arms.csv")
    rows = [[label, *_difference(found[a], found[b], kinds)] for label, a, b in _pairs(found)]
    if rows:
        columns = ["difference of returns", "all", *kinds, "by seed"]
        yield _table(columns, rows, "seed by seed and game by game", out / "differences.csv")


def _figures(arm: Arm, kinds: Sequence[str]) -> list[str]:
    returns, log_ratio = arm.returns(), arm.values("log_ratio")
    by_kind = [plus_minus(returns[:, arm.of(kind)]) for kind in kinds]
    kl = "" if np.isnan(log_ratio).all() else plus_minus(log_ratio, 1)
    return [plus_minus(returns), plus_minus(arm.values("won")), *by_kind, kl]


def _difference(one: Arm, other: Arm, kinds: Sequence[str]) -> list[str]:
    less = one.returns() - other.returns()
    by_seed = " ".join(f"{value:+.3f}" for value in less.mean(axis=1))
    return [plus_minus(less), *(plus_minus(less[:, one.of(kind)]) for kind in kinds), by_seed]


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


def draw(found: Mapping[str, Arm], path: Path) -> None:
    """Draw a panel for each kind of game, with a row for each arm: seeds, mean and 95 % interval."""
    kinds = next(iter(found.values())).kinds()
    names = [name for name in found if name != REFERENCE][::-1]
    size = (3.2 + 3.4 * len(kinds), 1.3 + 0.3 * len(names))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=size, sharey=True, squeeze=False)
    for panel, kind in zip(axes[0], kinds, strict=True):
        for place, name in enumerate(names):
            values = found[name].returns()[:, found[name].of(kind)]
            mean, half = crossed_interval(values)
            colour = COLOURS[name.partition(", ")[2]]
            panel.errorbar(mean, place, xerr=half, fmt="o", color=colour, capsize=3, markersize=5)
            panel.plot(values.mean(axis=1), [place] * len(values), "|", color=colour, alpha=0.7, markersize=9)
        panel.axvline(found[REFERENCE].returns()[:, found[REFERENCE].of(kind)].mean(), color="#24292f", ls="--", lw=1)
        panel.set_title(f"{kind}: return in test games", fontsize=10)
        panel.set_yticks(range(len(names)), [name.partition(", ")[0] for name in names], fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for rewards, label in SHOWN.items():
        axes[0][0].plot([], [], "o", color=COLOURS[rewards], label=label)
    axes[0][0].plot([], [], "--", color="#24292f", label=REFERENCE)
    figure.legend(loc="lower center", ncols=4, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.25 / size[1] + 0.02, 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
