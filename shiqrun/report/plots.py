"""Matplotlib draws the reward/KL frontier and the learning curves, as files and as SVG elements of the page."""

import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from shiqrun.report.number_text import format_number, format_plus_minus
from shiqrun.report.seed_groups import KL, ORDER, REWARD, Estimate, SeedGroup
from shiqrun.toy.plotting import COLOURS, STYLE

INK, QUIET = "#24292f", "#6e7781"
"""Colours of text and axes in the files; the page replaces them by its own (`inline_svg`)."""
MARKERS = "osD^vPX<>hp*"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
WIDE, NARROW, PANEL = (7.4, 4.4), (3.7, 4.6), (3.7, 2.5)
"""Sizes in inches; a CSS inch is 96 pixels, so that NARROW fits a phone."""
SYMLOG_FROM = 40.0
"""The KL axis is logarithmic from this ratio of the largest to the smallest positive KL."""
RC_PARAMS: dict[Any, Any] = STYLE | {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
LOG_FROM = 50.0
"""The axis of a loss is logarithmic from this ratio of its largest to its smallest value."""
SHORT_NAME, LINE, WIDE_LINE, MOST_LINES = 14, 22, 40, 3
"""Characters of a method's name: two of SHORT_NAME stand side by side in a legend on a phone, LINE fit at the end of a
curve, WIDE_LINE in a legend; a name gets at most MOST_LINES lines."""
EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.6}
SMALLEST, LARGEST, STAR = 7, 11, 1.4
"""Sizes of the frontier's markers in points, and the factor of a star, which looks small because it is thin."""
Plot = Callable[[Any], None]
"""Draws on an empty matplotlib figure."""
Styles = Mapping[str, dict[str, Any]]
"""Method to colour, marker and dashes, as keywords of matplotlib."""


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the colour, marker and dashes of each method; those of up to twelve methods differ.

    A method in `ORDER` has the same style in every report. Where it is absent, its first variant has it.
    """
    own: dict[int, str] = {}
    for name in methods:
        algo = name.partition(" ")[0]
        if algo in ORDER:
            own.setdefault(ORDER.index(algo), name)
    left = (i for i in itertools.count() if i not in own)
    places = {name: i for i, name in own.items()}
    return {name: _style(places[name] if name in places else next(left)) for name in methods}


def _style(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[(place // len(COLOURS) + place) % len(DASHES)],
    }


def method_labels(methods: Iterable[str], line: int) -> dict[str, str]:
    """Return each method's label in a figure: its name wrapped to `line` characters; no two labels are alike."""
    wrapped: dict[str, str] = {}
    for name in methods:
        lines = textwrap.wrap(name, line, break_on_hyphens=False) or [name]
        label = "\n".join(lines[:MOST_LINES]) + "…" * (len(lines) > MOST_LINES)
        again = sum(other == label or other.startswith(f"{label} #") for other in wrapped.values())
        wrapped[name] = f"{label} #{again + 1}" if again else label
    return wrapped


def draw_svg(plot: Plot, size: tuple[float, float], stem: Path) -> str:
    """Draw a figure of the report, write it to `stem.svg` and `stem.png`, and return the SVG text.

    Args:
        plot: draws on the empty figure.
        size: width and height in inches.
        stem: path of the files without extension.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=size)
        plot(figure)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        stem.with_name(f"{stem.name}.svg").write_text(svg.getvalue(), encoding="utf-8")
        figure.set_layout_engine("none")  # saving the SVG has laid the figure out already
        figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=150)
    return svg.getvalue()


def inline_svg(svg: str, name: str, title: str, tips: Mapping[str, str]) -> Markup:
    """Return an SVG file as an element of the page, in the page's colours.

    Args:
        svg: of `draw_svg`.
        name: put before every id, so that ids of two figures differ.
        title: the alternative text.
        tips: id of a group to its tooltip.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for point, text in tips.items():
        body = body.replace(f'<g id="{point}">', f'<g id="{point}" class="tip"><title>{escape(text)}</title>')
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in ((INK, "currentColor"), (QUIET, "var(--quiet)"), ("#000000", "currentColor")):
        body = body.replace(colour, variable)
    body = body.replace("#ffffff", "var(--page)").replace("#b0b0b0", "var(--line)")
    return Markup(body.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))


def frontier_plot(
    groups: Sequence[SeedGroup], styles: Styles, reference: float | None, *, wide: bool
) -> tuple[Plot, dict[str, str]]:
    """Return the plot of reward over KL, a point for each method and beta with its intervals, and tooltips by point id.

    Args:
        groups: the runs by method and beta.
        styles: of each method.
        reference: mean reward of the reference policy, None for unknown.
        wide: the legend stands beside the axes, else below.
    """
    points = [(g, kl, reward) for g in groups if (kl := g.final(KL)) and (reward := g.final(REWARD))]
    betas = list(dict.fromkeys(sorted((g.beta for g in groups), key=lambda beta: (beta is not None, beta or 0.0))))
    tips = {f"point{i}": _tip(g, kl, reward) for i, (g, kl, reward) in enumerate(points)}
    labels = method_labels(styles, WIDE_LINE)

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
        if reference is not None:
            axes.axhline(reference, color=QUIET, linewidth=0.8, linestyle=":")
            axes.plot([0], [reference], "+", color=INK, markersize=11, label="reference", linestyle="none")
        for name in dict.fromkeys(g.method for g, _, _ in points):
            mine = [(i, *point) for i, point in enumerate(points) if point[0].method == name]
            axes.plot([], [], **styles[name], label=labels[name])
            _plot_method(axes, mine, styles[name], betas)
        label = f"KL to the reference, nats a sequence\n{_kl_scale(axes, [kl.mean for _, kl, _ in points])}".strip()
        axes.set(xlabel=label, ylabel="reward, mean over seeds")
        columns = 1 if wide or any(len(name) > SHORT_NAME for name in styles) else 2
        figure.legend(loc="outside right upper" if wide else "outside lower center", ncols=columns)

    return plot, tips


def _plot_method(
    axes: Any,
    points: list[tuple[int, SeedGroup, Estimate, Estimate]],
    style: dict[str, Any],
    betas: Sequence[float | None],
) -> None:
    """Draw a method's points, joined from small to large beta, with intervals; a larger marker is a larger beta."""
    x, y = [p[2].mean for p in points], [p[3].mean for p in points]
    axes.plot(x, y, **style | {"marker": ""}, linewidth=1.3)
    across = sorted((kl.mean, r.mean - r.half, r.mean + r.half) for _, _, kl, r in points if r.known)
    if len(across) > 1:
        axes.fill_between(*zip(*across, strict=True), color=style["color"], alpha=0.09, linewidth=0)
    for i, group, kl, reward in points:
        whiskers = {"color": style["color"], "linewidth": 0.8, "alpha": 0.55}
        axes.plot([kl.mean - kl.half, kl.mean + kl.half], [reward.mean] * 2, **whiskers)
        axes.plot([kl.mean] * 2, [reward.mean - reward.half, reward.mean + reward.half], **whiskers)
        size = SMALLEST + (LARGEST - SMALLEST) * betas.index(group.beta) / max(1, len(betas) - 1)
        size *= STAR if style["marker"] == "*" else 1
        axes.plot([kl.mean], [reward.mean], **style, **EDGE, markersize=size, gid=f"point{i}")


def _kl_scale(axes: Any, kls: Sequence[float]) -> str:
    """Make the KL axis logarithmic beyond a linear part near 0 if the range asks for it; return words that say so."""
    positive = [kl for kl in kls if kl > 0]
    if not positive or max(positive) < SYMLOG_FROM * min(positive):
        return ""
    from matplotlib.ticker import SymmetricalLogLocator

    linear = float(f"{min(positive):.1g}")
    axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
    axes.set_xlim(left=-0.2 * linear)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: "" if 0 < value < linear else _plain(value, _))
    return f"(logarithmic beyond {format_number(linear)})"


def _plain(value: float, _: Any) -> str:
    """Return the label of a logarithmic tick without mathematical notation, which the page's font cannot set."""
    return f"{value:g}"


def _tip(group: SeedGroup, kl: Estimate, reward: Estimate) -> str:
    beta = "" if group.beta is None else f", β = {group.beta:g}"
    numbers = [
        f"{name} {' ± '.join(filter(None, format_plus_minus(estimate.mean, estimate.half)))}"
        for name, estimate in (("reward", reward), ("KL", kl))
    ]
    return f"{group.method}{beta}: {', '.join(numbers)} ({reward.count} seeds)"


def curve_plot(
    metric: str, groups: Sequence[SeedGroup], title: str, styles: Styles, limits: tuple[float, float] | None = None
) -> Plot:
    """Return the plot of a metric over steps: mean over seeds with the 95 % interval, a line for each group."""
    labels = method_labels(styles, LINE)

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        lines = [(group, curve) for group in groups if (curve := group.curve(metric))]
        values = [e.mean for _, curve in lines for _, e in curve]
        logarithmic = metric.endswith("loss") and min(values) > 0 and max(values) > LOG_FROM * min(values)
        floor = min(values) if logarithmic else -math.inf
        ends = [_plot_curve(axes, curve, styles[group.method], labels[group.method], floor) for group, curve in lines]
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_formatter("")
        if limits is not None:
            axes.set_ylim(limits)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("step")
        _label_ends(axes, ends)

    return plot


def _plot_curve(
    axes: Any, curve: list[tuple[int, Estimate]], style: dict[str, Any], name: str, floor: float
) -> tuple[Any, ...]:
    """Draw a curve and the band of its interval, cut at the floor; return last value, last step, name and colour."""
    steps, mean = [step for step, _ in curve], [e.mean for _, e in curve]
    lone = {"marker": style["marker"]} if len(steps) == 1 else {}
    axes.plot(steps, mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.5, **lone)
    low, high = [max(e.mean - e.half, floor) for _, e in curve], [e.mean + e.half for _, e in curve]
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    return mean[-1], steps[-1], name, style["color"]


def common_limits(metric: str, groups: Sequence[SeedGroup]) -> tuple[float, float] | None:
    """Return axis limits that hold the metric's means in all groups; None where these have no range."""
    values = [e.mean for group in groups for _, e in group.curve(metric)]
    room = 0.06 * (max(values) - min(values)) if values else 0.0
    return (min(values) - room, max(values) + room) if room else None


def _label_ends(axes: Any, ends: list[tuple[Any, ...]]) -> None:
    """Write each curve's name right of the axes at the height of its end, moved apart where names would overlap."""
    ends = sorted(ends)
    axes.autoscale_view()  # before this call, the limits are not those of the data
    pixels = [axes.transData.transform((step, value)) for value, step, *_ in ends]
    anchors = [axes.transAxes.inverted().transform(pixel)[1] for pixel in pixels]
    tall = [1 + name.count("\n") for _, _, name, _ in ends]
    steps = [(low + high) / 2 for low, high in itertools.pairwise(tall)]  # lines from one name's middle to the next's
    gap = min(0.085, 1 / max(1.0, sum(steps)))
    heights: list[float] = []
    for i, height in enumerate(anchors):
        room_above = 1 - gap * sum(steps[i:])
        heights.append(min(max(height, heights[-1] + gap * steps[i - 1] if heights else 0), room_above))
    for height, anchor, (_, _, name, colour) in zip(heights, anchors, ends, strict=True):
        axes.plot([1, 1.03], [anchor, height], transform=axes.transAxes, color=colour, lw=0.7, clip_on=False)
        text_style = {"color": colour, "fontsize": 8, "va": "center", "linespacing": 1.0}
        axes.text(1.04, height, name, transform=axes.transAxes, **text_style)
