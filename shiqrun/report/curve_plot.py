"""Learning curves of a report show a metric over steps; lines are named at their ends, and means alone set the axes."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from shiqrun.report.plots import QUIET, Plot, Styles, method_labels, plain_tick, text_colour
from shiqrun.report.seed_groups import Estimate, SeedGroup

LOG_FROM = 50.0
"""The axis of a loss is logarithmic from this ratio of its largest to its smallest value."""
ROOM = 0.06
"""Of the axes above the largest and below the smallest mean, as a share of their range."""
FONT, LINE_HEIGHT = 9.0, 1.2
"""Size of the names at the ends of curves, points, and the height of their lines, times that size."""
PANEL_HEIGHT, OUTSIDE = 2.6, 0.75
"""Height of a panel with few names, and of its title and axis, inches."""
MOST_BANDS = 5
"""The largest number of lines with bands of their intervals; those of more lines cover each other."""
Curve = list[tuple[int, Estimate]]


def panel_height(groups: Sequence[SeedGroup]) -> float:
    """Return the height of a panel, inches, in which the names of all groups have room."""
    lines = sum(1 + label.count("\n") for label in method_labels(group.method for group in groups).values())
    return max(PANEL_HEIGHT, OUTSIDE + (lines + 1) * FONT * LINE_HEIGHT / 72)


def curve_plot(
    metric: str,
    groups: Sequence[SeedGroup],
    title: str,
    styles: Styles,
    limits: tuple[float, float] | None = None,
    optimum: float | None = None,
) -> Plot:
    """Return the plot of a metric over steps: mean over seeds with the 95 % interval, a line for each group.

    Args:
        metric: name.
        groups: one line each, those without the metric left out.
        title: above the axes.
        styles: of each method.
        limits: of the metric's axis; None for those of the means.
        optimum: the best possible value, drawn as a line; None for unknown.
    """
    labels = method_labels(styles)

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        lines = [(group, curve) for group in groups if (curve := group.curve(metric))]
        values = [e.mean for _, curve in lines for _, e in curve]
        logarithmic = metric.endswith("loss") and min(values) > 0 and max(values) > LOG_FROM * min(values)
        floor = min(values) if logarithmic else -math.inf
        ends = [_plot_curve(axes, curve, styles[group.method], labels[group.method]) for group, curve in lines]
        for group, curve in lines if len(lines) <= MOST_BANDS else ():
            _plot_band(axes, curve, styles[group.method]["color"], floor)
        if optimum is not None:
            axes.axhline(optimum, color=QUIET, linewidth=1, linestyle=(0, (4, 2)))
            ends.append((optimum, max(step for _, curve in lines for step, _ in curve), "optimum", QUIET, QUIET))
            values.append(optimum)
        _set_limits(axes, values, logarithmic, limits)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("step")
        _label_ends(axes, ends)

    return plot


def _plot_curve(axes: Any, curve: Curve, style: dict[str, Any], name: str) -> tuple[Any, ...]:
    """Draw a curve; return its last value, last step, name and colours of line and text."""
    steps, mean = [step for step, _ in curve], [e.mean for _, e in curve]
    lone = {"marker": style["marker"]} if len(steps) == 1 else {}
    axes.plot(steps, mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.5, **lone)
    return mean[-1], steps[-1], name, style["color"], text_colour(style)


def _plot_band(axes: Any, curve: Curve, colour: str, floor: float) -> None:
    """Draw the band of a curve's intervals, cut at the floor."""
    low, high = [max(e.mean - e.half, floor) for _, e in curve], [e.mean + e.half for _, e in curve]
    axes.fill_between([step for step, _ in curve], low, high, color=colour, alpha=0.13, linewidth=0)


def _set_limits(axes: Any, values: Sequence[float], logarithmic: bool, limits: tuple[float, float] | None) -> None:
    """Set the limits of the metric's axis: those given, else those of the means with some room."""
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_tick)
        axes.yaxis.set_minor_formatter("")
        room = (max(values) / min(values)) ** ROOM
        axes.set_ylim(min(values) / room, max(values) * room)
    elif limits := limits or _limits(values):
        axes.set_ylim(limits)


def _limits(values: Sequence[float]) -> tuple[float, float] | None:
    room = ROOM * (max(values) - min(values)) if values else 0.0
    return (min(values) - room, max(values) + room) if room else None


def common_limits(metric: str, groups: Sequence[SeedGroup]) -> tuple[float, float] | None:
    """Return axis limits that hold the metric's means in all groups; None where these have no range."""
    return _limits([e.mean for group in groups for _, e in group.curve(metric)])


def _label_ends(axes: Any, ends: list[tuple[Any, ...]]) -> None:
    """Write each curve's name right of the axes at the height of its end, moved apart where names would overlap."""
    ends = sorted(ends)
    axes.autoscale_view()  # before this call, the limits are not those of the data
    pixels = [axes.transData.transform((step, value)) for value, step, *_ in ends]
    anchors = [min(max(axes.transAxes.inverted().transform(pixel)[1], 0), 1) for pixel in pixels]
    tall = [1 + name.count("\n") for _, _, name, *_ in ends]
    steps = [(low + high) / 2 for low, high in itertools.pairwise(tall)]  # lines from one name's middle to the next's
    inches = axes.figure.get_size_inches()[1] - OUTSIDE
    ends_of_names = (tall[0] + tall[-1]) / 2  # lines beyond the middles of the first and the last name
    gap = min(FONT * LINE_HEIGHT / 72 / inches, 1 / max(1.0, sum(steps) + ends_of_names))
    heights: list[float] = []
    for i, height in enumerate(anchors):
        room_above = 1 - gap * (sum(steps[i:]) + tall[-1] / 2)  # the title stands above
        heights.append(min(max(height, heights[-1] + gap * steps[i - 1] if heights else 0), room_above))
    for height, anchor, (*_, name, colour, ink) in zip(heights, anchors, ends, strict=True):
        axes.plot([1, 1.03], [anchor, height], transform=axes.transAxes, color=colour, lw=0.7, clip_on=False)
        style = {"color": ink, "fontsize": FONT, "va": "center", "linespacing": 1.0}
        axes.text(1.04, height, name, transform=axes.transAxes, **style)
