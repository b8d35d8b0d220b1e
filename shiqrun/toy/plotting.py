"""The figures of all toy studies share this style and these parts; matplotlib is imported when a figure is drawn."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shiqrun.util.intervals import interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6914", "#7F7F7F")
"""The palette of Okabe and Ito, which colour-blind readers can tell apart, and two more colours."""
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "shiqrun",  # the same figure is the same file
    "pdf.fonttype": 42,  # TrueType, which journals accept and editors can edit
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
DPI = 300
"""Of PNG files, pixels an inch, as journals ask for."""


def save_figure(draw: Callable[[Any], None], stem: Path) -> list[Path]:
    """Draw a figure, write it to `stem.png`, `stem.pdf` and `stem.svg`, and return the paths."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure()
        draw(figure)
        files = [stem.with_suffix(f".{ending}") for ending in ("png", "pdf", "svg")]
        figure.savefig(files[0], dpi=DPI)
        save_pdf(figure, files[1])
        figure.savefig(files[2], metadata={"Date": None})
    return files


def save_pdf(figure: Any, path: Path) -> None:
    """Write a figure as PDF; the library that embeds fonts logs every table of theirs, which is silenced."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    figure.savefig(path, metadata={"CreationDate": None})


def plot_band(axes: Any, x: Sequence[float], curves: np.ndarray, number: int, label: str) -> None:
    """Plot the mean over seeds of curves `[seeds, points]` with its 95 % interval; `number` chooses the colour."""
    mean, half = np.array([interval(list(column)) for column in curves.T]).T
    colour = COLOURS[number % len(COLOURS)]
    dashes = DASHES[(number // 3) % len(DASHES)]
    axes.plot(x, mean, color=colour, linestyle=dashes, label=label, linewidth=1.6)
    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def merge_equal_curves(curves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the curves with those that are equal up to rounding under one name, "a = b"."""
    names: list[list[str]] = []
    for name, curve in curves.items():
        same = [group for group in names if np.allclose(curves[group[0]], curve, rtol=0, atol=1e-9)]
        same[0].append(name) if same else names.append([name])
    return {" = ".join(group): curves[group[0]] for group in names}


def shared_legend(figure: Any, axes: Any, columns: int) -> None:
    """Put one legend for all panels of a figure under them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
