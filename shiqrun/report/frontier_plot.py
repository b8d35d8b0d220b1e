"""The frontier of a report is the plot of reward over KL: a point for each method and beta, named where it stands."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shiqrun.report.label_places import Label, place_labels
from shiqrun.report.number_text import format_number, format_plus_minus
from shiqrun.report.plots import INK, QUIET, Plot, Styles, method_labels, plain_tick, text_colour
from shiqrun.report.seed_groups import KL, REWARD, Estimate, SeedGroup

OPTIMUM, OPTIMUM_REWARD, OPTIMUM_KL = "val/optimum", "val/optimum_reward", "val/optimum_kl"
SYMLOG_FROM = 40.0
"""The KL axis is logarithmic from this ratio of the largest to the smallest positive KL."""
LEAST_POINTS = 2
"""A frontier of fewer points is not drawn."""
SQUEEZED = 4.0
"""The optimum is left outside of the axes where it would make them more than this many times as long."""
ROOM = 0.08
"""Of the axes beyond the outermost points, as a share of their range."""
NAME_FONT, BETA_FONT, BETA_REACH = 9.0, 7.0, 40.0
"""Sizes of the labels with names and betas, and the largest distance of a beta from its point, points."""
CHARACTERS_AN_INCH = 13
"""Of the note above the axes, so that it is not wider than the figure."""
EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.6}
MARKER, STAR = 7.0, 11.0
"""Sizes of the markers of methods and of the optimum, points."""


@dataclass(frozen=True)
class Point:
    """A point of the frontier is a method at one beta, with its final KL and reward over seeds."""

    group: SeedGroup
    kl: Estimate
    reward: Estimate

    @property
    def place(self) -> tuple[float, float]:
        """Return KL and reward, the means over seeds."""
        return self.kl.mean, self.reward.mean

    @property
    def tip(self) -> str:
        """Return the text of the point's tooltip."""
        beta = "" if self.group.beta is None else f", β = {self.group.beta:g}"
        numbers = [
            f"{name} {' ± '.join(filter(None, format_plus_minus(estimate.mean, estimate.half)))}"
            for name, estimate in (("reward", self.reward), ("KL", self.kl))
        ]
        return f"{self.group.method}{beta}: {', '.join(numbers)} ({self.reward.count} seeds)"


@dataclass(frozen=True)
class Optimum:
    """The optimum of one beta is the best policy's KL and reward; NaN where only its regularised return is known."""

    beta: float
    kl: float
    reward: float
    value: float

    @property
    def place(self) -> tuple[float, float]:
        """Return KL and reward."""
        return self.kl, self.reward


def frontier_points(groups: Sequence[SeedGroup]) -> list[Point]:
    """Return the points of the frontier: the groups whose final KL and reward are known."""
    return [Point(g, kl, reward) for g in groups if (kl := g.final(KL)) and (reward := g.final(REWARD))]


def known_optima(groups: Sequence[SeedGroup]) -> list[Optimum]:
    """Return the optimum of each beta at which the runs know one, betas ascending."""
    found = []
    for beta in sorted({group.beta for group in groups if group.beta is not None}):
        runs = [run.final for group in groups if group.beta == beta for run in group.finished]
        means = []
        for name in (OPTIMUM_KL, OPTIMUM_REWARD, OPTIMUM):
            values = [final[name] for final in runs if name in final]
            means.append(math.fsum(values) / len(values) if values else math.nan)
        if not math.isnan(means[2]):
            found.append(Optimum(beta, *means))
    return found


def frontier_plot(
    points: Sequence[Point], styles: Styles, reference: float | None, optima: Sequence[Optimum] = ()
) -> Plot:
    """Return the plot of reward over KL, a point for each method and beta; neither intervals set the axes.

    Args:
        points: of `frontier_points`.
        styles: of each method.
        reference: mean reward of the reference policy, None for unknown.
        optima: of `known_optima`.
    """

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
        axes.margins(0)
        for name in dict.fromkeys(p.group.method for p in points):
            _plot_method(axes, [(i, p) for i, p in enumerate(points) if p.group.method == name], styles[name])
        if reference is not None:
            axes.axhline(reference, color=QUIET, linewidth=0.8, linestyle=":")
            axes.plot([0], [reference], "+", color=INK, markersize=11, linestyle="none")
        shown, outside = _set_limits(axes, points, reference, optima)
        _plot_optima(axes, shown)
        scale = _kl_scale(axes, [kl for kl, _ in _placed(points, shown)])
        axes.set(xlabel=f"KL to the reference, nats a sequence\n{scale}".strip(), ylabel="reward, mean over seeds")
        note = textwrap.fill(_note(points, outside), int(CHARACTERS_AN_INCH * figure.get_size_inches()[0]))
        axes.set_title(note, loc="left", fontsize=8, color=QUIET)
        figure.draw_without_rendering()  # lays the axes out, which labels must not move again
        figure.set_layout_engine("none")
        _write_labels(axes, points, styles, reference, shown)

    return plot


def _plot_method(axes: Any, points: list[tuple[int, Point]], style: dict[str, Any]) -> None:
    """Draw a method's points, joined from small to large beta, and their intervals as thin lines."""
    axes.plot([p.kl.mean for _, p in points], [p.reward.mean for _, p in points], **style | {"marker": ""}, lw=1.3)
    for i, p in points:
        for whisker in _whiskers(p):
            axes.plot(*zip(*whisker, strict=True), color=style["color"], lw=0.8, alpha=0.4)
        x, y = p.place
        size = MARKER * (1.4 if style["marker"] == "*" else 1)  # a star looks small because it is thin
        axes.plot([x], [y], **style, **EDGE, markersize=size, gid=f"point{i}", zorder=3)


def _whiskers(point: Point) -> list[list[tuple[float, float]]]:
    """Return the ends of a point's intervals, as far as they are known."""
    (x, y), across, up = point.place, point.kl, point.reward
    found = [[(x - across.half, y), (x + across.half, y)]] if across.known else []
    return found + ([[(x, y - up.half), (x, y + up.half)]] if up.known else [])


def _placed(points: Sequence[Point], optima: Sequence[Optimum]) -> list[tuple[float, float]]:
    return [p.place for p in points] + [o.place for o in optima if not math.isnan(o.kl)]


def _set_limits(
    axes: Any, points: Sequence[Point], reference: float | None, optima: Sequence[Optimum]
) -> tuple[list[Optimum], list[Optimum]]:
    """Set the axes' limits by means, reference and optima; return the optima inside and those too far away."""
    own = [p.place for p in points] + ([(0.0, reference)] if reference is not None else [])
    spans = [max(values) - min(values) for values in zip(*own, strict=True)]
    inside, outside = list[Optimum](), list[Optimum]()
    for one in optima:
        together = zip(*[*own, one.place], strict=True)
        far = any(max(v) - min(v) > SQUEEZED * s for v, s in zip(together, spans, strict=True) if s > 0)
        (outside if far else inside).append(one)
    places = own + [o.place for o in inside if not math.isnan(o.kl)]
    for values, set_limits in zip(zip(*places, strict=True), (axes.set_xlim, axes.set_ylim), strict=True):
        room = ROOM * ((max(values) - min(values)) or abs(max(values)) or 1.0)
        set_limits(min(values) - room, max(values) + room)
    return inside, outside


def _plot_optima(axes: Any, optima: Sequence[Optimum]) -> None:
    """Draw each known optimum as a star, joined; where only its return is known, as the line that no policy exceeds."""
    stars = [o for o in optima if not math.isnan(o.kl)]
    axes.plot([o.kl for o in stars], [o.reward for o in stars], color=INK, lw=0.9, linestyle=(0, (4, 2)), zorder=1)
    for i, one in enumerate(stars):
        axes.plot([one.kl], [one.reward], "*", color=INK, markersize=STAR, **EDGE, gid=f"optimum{i}", zorder=2.5)
    for one in (o for o in optima if math.isnan(o.kl)):
        right = axes.get_xlim()[1]
        axes.plot([0, right], [one.value, one.value + one.beta * right], color=INK, lw=0.9, linestyle=(0, (4, 2)))


def _note(points: Sequence[Point], outside: Sequence[Optimum]) -> str:
    """Return what a reader must know of the labels: what their numbers are, and what lies outside of the axes."""
    betas = {p.group.beta for p in points if p.group.beta is not None}
    words = ["numbers are β"] if len(betas) > 1 else [f"β = {beta:g}" for beta in betas]
    for one in outside[:2]:
        place = "" if math.isnan(one.kl) else f": KL {format_number(one.kl)}, reward {format_number(one.reward)}"
        words.append(f"optimum of β {one.beta:g} outside{place}")
    return "; ".join(words)


def _kl_scale(axes: Any, kls: Sequence[float]) -> str:
    """Make the KL axis logarithmic beyond a linear part near 0 if the range asks for it; return words that say so."""
    positive = [kl for kl in kls if kl > 0]
    if not positive or max(positive) < SYMLOG_FROM * min(positive):
        return ""
    from matplotlib.ticker import SymmetricalLogLocator

    linear = float(f"{min(positive):.1g}")
    axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
    axes.set_xlim(-0.2 * linear, 1.3 * max(positive))
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: "" if 0 < value < linear else plain_tick(value, _))
    return f"(logarithmic beyond {format_number(linear)})"


def _write_labels(
    axes: Any, points: Sequence[Point], styles: Styles, reference: float | None, optima: Sequence[Optimum]
) -> None:
    """Write each method's name at the end of its line, then the betas at the points."""
    names, ends, betas = method_labels(styles), [], []
    stars = [o for o in optima if not math.isnan(o.kl)]
    lines = [[p.place for p in points if p.group.method == name] for name in styles]
    for name, line in zip(styles, lines, strict=True):
        if line:
            look = {"color": text_colour(styles[name]), "fontsize": NAME_FONT, "linespacing": 1.0}
            ends.append(Label(names[name], max(line), look))
    quiet = {"color": INK, "fontsize": NAME_FONT - 1}
    ends += [Label("reference", (0.0, reference), quiet)] if reference is not None else []
    ends += [Label("optimum", stars[0].place, quiet)] if stars else []
    if len({p.group.beta for p in points if p.group.beta is not None}) > 1:
        for p in points:
            look = {"color": text_colour(styles[p.group.method]), "fontsize": BETA_FONT}
            betas += [Label(f"{p.group.beta:g}", p.place, look, BETA_REACH)] if p.group.beta is not None else []
        look = {"color": INK, "fontsize": BETA_FONT}
        betas += [Label(f"{o.beta:g}", o.place, look, BETA_REACH) for o in stars]
    marks = _placed(points, optima) + ([(0.0, reference)] if reference is not None else [])
    lines += [[o.place for o in stars]] + ([[(x, reference) for x in axes.get_xlim()]] if reference is not None else [])
    lines += [whisker for p in points for whisker in _whiskers(p)]
    place_labels(axes, [*ends, *betas], marks, lines)
