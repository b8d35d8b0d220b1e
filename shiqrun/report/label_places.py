"""`place_labels` writes labels beside the points of a figure: none covers another one, few cover points or lines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
ANGLES = tuple(math.radians(degrees) for degrees in (0, 45, -45, 90, -90, 22, -22, 68, -68, 135, -135, 158, -158, 180))
"""The directions from a point to its label that are tried, the preferred ones first."""
NEAREST, STEP = 6.0, 5.0
"""The distance from a point to the nearest place of its label, and between two places, points."""
PAD = 1.0
"""Kept free around a label, points."""
COVERS_POINT, CROSSES_LINE, TURNS = 30.0, 7.0, 0.15
"""The price of covering a point or crossing a line, and of a less preferred direction, as a distance in points."""
TINY = 1e-9
"""Instead of 0 for the width or height of a segment, points."""
LEADER_FROM = 11.0
"""The distance from which a thin line joins a point to its label, points."""


@dataclass(frozen=True)
class Label:
    """A label is a text that belongs to a point of the axes.

    Attributes:
        text: what is written.
        at: x and y of the point, in data coordinates.
        style: keywords of matplotlib's text.
        reach: the largest distance from the point, points; a label without a free place within it is left out.
    """

    text: str
    at: tuple[float, float]
    style: dict[str, Any]
    reach: float = 400.0


def place_labels(axes: Any, labels: Sequence[Label], points: Sequence[Any], lines: Sequence[Sequence[Any]]) -> None:
    """Write the labels, the first ones first, each at the cheapest place that no other label has.

    The figure's layout must be final. Labels stay inside the figure, at the height of the axes.

    Args:
        axes: of a matplotlib figure.
        labels: in the order of their importance.
        points: x and y of each marker, in data coordinates.
        lines: the points that each line joins, in data coordinates.
    """
    figure = axes.figure
    renderer, unit = figure.canvas.get_renderer(), figure.dpi / 72
    inside = axes.get_window_extent(renderer)
    left, right = inside.x0 / unit, figure.bbox.x1 / unit - 2
    bounds = (left, inside.y0 / unit + 1, right, max(inside.y1, figure.bbox.y1 - 2 * unit) / unit)
    marks, segments = _in_points(axes, points, unit), _segments([_in_points(axes, line, unit) for line in lines])
    taken = np.empty((0, 4))
    for label in labels:
        (at,) = _in_points(axes, [label.at], unit)
        written = axes.annotate(
            label.text, label.at, xytext=(0, 0), textcoords="offset points", va="center", ha="center", **label.style
        )
        written.set_in_layout(False)
        box = written.get_window_extent(renderer)
        size = np.array([box.width, box.height]) / unit
        place = _cheapest(at, size, label.reach, bounds, taken, marks, segments)
        if place is None:
            written.remove()
            continue
        taken = np.vstack([taken, _boxes(place[None], size)])
        written.set_position(place - at)
        if _gap(at, place, size) > LEADER_FROM:
            _draw_leader(axes, at, place, size, label)


def _cheapest(
    at: Floats,
    size: Floats,
    reach: float,
    bounds: tuple[float, float, float, float],
    taken: Floats,
    marks: Floats,
    segments: Floats,
) -> Floats | None:
    """Return the middle of the cheapest free place of a label, points; None where there is none within reach."""
    distances = np.arange(NEAREST, max(NEAREST + 0.1, reach), STEP)
    angles = np.array(ANGLES)
    direction = np.stack([np.cos(angles), np.sin(angles)], -1)
    # From the point to the label's edge it is `distance`, in every direction.
    edge = 1 / np.maximum(np.abs(direction / (size / 2)).max(-1), 1e-9)
    far = distances[:, None] + edge
    places = (at + far[..., None] * direction).reshape(-1, 2)
    cost = (distances[:, None] + TURNS * np.arange(len(angles))[None] * STEP).reshape(-1)
    boxes = _boxes(places, size)
    free = (boxes[:, :2] >= bounds[:2]).all(-1) & (boxes[:, 2:] <= bounds[2:]).all(-1)
    free &= ~_overlap(boxes, taken).any(-1)
    if not free.any():
        return None
    boxes, places, cost = boxes[free], places[free], cost[free]
    around = np.concatenate([marks - 3, marks + 3], -1)
    cost = cost + COVERS_POINT * _overlap(boxes, around).sum(-1) + CROSSES_LINE * _crossings(boxes, segments)
    return places[np.argmin(cost)]


def _in_points(axes: Any, points: Sequence[Any], unit: float) -> Floats:
    """Return places in data coordinates as points of the figure, `[n, 2]`."""
    return axes.transData.transform(np.asarray(points, float).reshape(-1, 2)) / unit


def _segments(lines: Sequence[Floats]) -> Floats:
    """Return the segments of lines as their two ends, `[n, 4]`."""
    pairs = [np.concatenate([line[:-1], line[1:]], -1) for line in lines if len(line) > 1]
    return np.concatenate(pairs) if pairs else np.empty((0, 4))


def _boxes(middles: Floats, size: Floats) -> Floats:
    """Return boxes around their middles with the free room around a label: left, bottom, right, top, `[n, 4]`."""
    return np.concatenate([middles - size / 2 - PAD, middles + size / 2 + PAD], -1)


def _overlap(boxes: Floats, others: Floats) -> NDArray[np.bool_]:
    """Return which boxes overlap which others, `[boxes, others]`."""
    a, b = boxes[:, None], others[None]
    return np.logical_and.reduce((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:]), axis=-1)


def _crossings(boxes: Floats, segments: Floats) -> Floats:
    """Return how many segments cross each box, `[boxes]`: those of which a part lies between all four sides."""
    start, along = segments[:, :2], segments[:, 2:] - segments[:, :2]
    along = np.where(np.abs(along) < TINY, TINY, along)
    sides = [(boxes[:, None, part] - start) / along for part in (slice(0, 2), slice(2, 4))]
    enters, leaves = np.minimum(*sides).max(-1), np.maximum(*sides).min(-1)
    return ((enters < leaves) & (leaves > 0) & (enters < 1)).sum(-1).astype(float)


def _nearest(at: Floats, place: Floats, size: Floats) -> Floats:
    """Return the point of a label's box that is nearest to a point."""
    return np.clip(at, place - size / 2, place + size / 2)


def _gap(at: Floats, place: Floats, size: Floats) -> float:
    return float(np.linalg.norm(at - _nearest(at, place, size)))


def _draw_leader(axes: Any, at: Floats, place: Floats, size: Floats, label: Label) -> None:
    """Join a point to its label by a thin line."""
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": label.style.get("color"), "alpha": 0.7}
    line |= {"shrinkA": 0, "shrinkB": 4}
    end = _nearest(at, place, size) - at
    joined = axes.annotate("", label.at, xytext=end, textcoords="offset points", arrowprops=line)
    joined.set_in_layout(False)
