"""The reward/KL frontier and the learning curves, as files and as SVG for the page."""

import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from shiqrun.report.number_text import number, plus_minus
from shiqrun.report.seed_groups import KL, ORDER, REWARD, Estimate, Group
from shiqrun.toy.plotting import COLOURS, STYLE

INK, QUIET = "#24292f", "#6e7781"
"""Colours of text and axes, which the page replaces by its own."""
MARKERS = "osD^vPX<>hp*"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
WIDE, NARROW, PANEL = (7.4, 4.4), (3.7, 4.6), (3.7, 2.5)
"""Sizes in inches; a CSS inch is 96 pixels, so that NARROW fits a phone."""
SYMLOG_FROM = 40.0
"""The ratio of the largest to the smallest positive KL from which its axis is logarithmic."""
LOOK: dict[Any, Any] = STYLE | {
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
"""The ratio of the largest to the smallest loss from which its axis is logarithmic."""
SHORT_NAME, LINE, WIDE_LINE, MOST_LINES = 14, 22, 40, 3
"""Characters of a method's name: those of which two stand side by side on a phone, and those of a line at the end of a
curve and in a legend; and how many lines it gets."""
EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.6}
SMALLEST, LARGEST, STAR = 7, 11, 1.4
"""Markers of the frontier, points, below which the forms look alike; and how much larger a star is, being thin."""
Draw = Callable[[Any], None]
Look = Mapping[str, dict[str, Any]]
"""Method to colour, marker and dashes."""


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each method; no two equal up to twelve.

    Those of a method in `ORDER` are the same in every report; its first variant has them where it is not there itself.
    """
    own: dict[int, str] = {}
    for name in methods:
        algo = name.partition(" ")[0]
        if algo in ORDER:
            own.setdefault(ORDER.index(algo), name)
    left = (i for i in itertools.count() if i not in own)
    places = {name: i for i, name in own.items()}
    return {name: _look(places[name] if name in places else next(left)) for name in methods}


def _look(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[(place // len(COLOURS) + place) % len(DASHES)],
    }


def labels(methods: Iterable[str], line: int) -> dict[str, str]:
    """What a figure calls each method: its name in lines of so many characters; no two alike."""
    made: dict[str, str] = {}
    for name in methods:
        lines = textwrap.wrap(name, line, break_on_hyphens=False) or [name]
        label = "\n".join(lines[:MOST_LINES]) + "…" * (len(lines) > MOST_LINES)
        again = sum(other == label or other.startswith(f"{label} #") for other in made.values())
        made[name] = f"{label} #{again + 1}" if again else label
    return made


def draw(figure: Draw, size: tuple[float, float], stem: Path | None) -> str:
    """The figure as SVG text; with a stem, also written as `.svg` and `.png`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(LOOK):
        canvas = Figure(figsize=size)
        figure(canvas)
        made = io.StringIO()
        canvas.savefig(made, format="svg", metadata={"Date": None})
        if stem is not None:
            stem.with_name(f"{stem.name}.svg").write_text(made.getvalue(), encoding="utf-8")
            canvas.set_layout_engine("none")  # it has been laid out
            canvas.savefig(stem.with_name(f"{stem.name}.png"), dpi=150)
    return made.getvalue()


def inlined(svg: str, name: str, title: str, tips: Mapping[str, str]) -> str:
    """An SVG file as an element of the page: the page's colours, ids that begin with `name`, tooltips by their ids."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for point, text in tips.items():
        body = body.replace(f'<g id="{point}">', f'<g id="{point}" class="tip"><title>{escape(text)}</title>')
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, meant in ((INK, "currentColor"), (QUIET, "var(--quiet)"), ("#000000", "currentColor")):
        body = body.replace(colour, meant)
    body = body.replace("#ffffff", "var(--page)").replace("#b0b0b0", "var(--line)")
    return body.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def frontier(
    groups: Sequence[Group], look: Look, reference: float | None, *, wide: bool
) -> tuple[Draw, dict[str, str]]:
    """Reward over KL, a point a method and beta with its intervals; and what to say of each point, by its id."""
    points = [(g, kl, reward) for g in groups if (kl := g.final(KL)) and (reward := g.final(REWARD))]
    betas = list(dict.fromkeys(sorted((g.beta for g in groups), key=lambda beta: (beta is not None, beta or 0.0))))
    tips = {f"point{i}": _tip(g, kl, reward) for i, (g, kl, reward) in enumerate(points)}
    named = labels(look, WIDE_LINE)

    def drawn(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=QUIET, linewidth=0.8, linestyle=":")
        if reference is not None:
            axes.axhline(reference, color=QUIET, linewidth=0.8, linestyle=":")
            axes.plot([0], [reference], "+", color=INK, markersize=11, label="reference", linestyle="none")
        for name in dict.fromkeys(g.method for g, _, _ in points):
            mine = [(i, *point) for i, point in enumerate(points) if point[0].method == name]
            axes.plot([], [], **look[name], label=named[name])
            _method(axes, mine, look[name], betas)
        label = f"KL to the reference, nats a sequence\n{_kl_scale(axes, [kl.mean for _, kl, _ in points])}".strip()
        axes.set(xlabel=label, ylabel="reward, mean over seeds")
        columns = 1 if wide or any(len(name) > SHORT_NAME for name in look) else 2
        figure.legend(loc="outside right upper" if wide else "outside lower center", ncols=columns)

    return drawn, tips


def _method(
    axes: Any,
    points: list[tuple[int, Group, Estimate, Estimate]],
    look: dict[str, Any],
    betas: Sequence[float | None],
) -> None:
    """A method's points joined from small to large beta, larger markers for larger beta, with intervals."""
    x, y = [p[2].mean for p in points], [p[3].mean for p in points]
    axes.plot(x, y, **look | {"marker": ""}, linewidth=1.3)
    across = sorted((kl.mean, r.mean - r.half, r.mean + r.half) for _, _, kl, r in points if r.known)
    if len(across) > 1:
        axes.fill_between(*zip(*across, strict=True), color=look["color"], alpha=0.09, linewidth=0)
    for i, group, kl, reward in points:
        whiskers = {"color": look["color"], "linewidth": 0.8, "alpha": 0.55}
        axes.plot([kl.mean - kl.half, kl.mean + kl.half], [reward.mean] * 2, **whiskers)
        axes.plot([kl.mean] * 2, [reward.mean - reward.half, reward.mean + reward.half], **whiskers)
        size = SMALLEST + (LARGEST - SMALLEST) * betas.index(group.beta) / max(1, len(betas) - 1)
        size *= STAR if look["marker"] == "*" else 1
        axes.plot([kl.mean], [reward.mean], **look, **EDGE, markersize=size, gid=f"point{i}")


def _kl_scale(axes: Any, kls: Sequence[float]) -> str:
    """Makes the KL axis linear near 0 and logarithmic beyond if the range asks for it, and says so."""
    positive = [kl for kl in kls if kl > 0]
    if not positive or max(positive) < SYMLOG_FROM * min(positive):
        return ""
    from matplotlib.ticker import SymmetricalLogLocator

    linear = float(f"{min(positive):.1g}")
    axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
    axes.set_xlim(left=-0.2 * linear)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: "" if 0 < value < linear else _plain(value, _))
    return f"(logarithmic beyond {number(linear)})"


def _plain(value: float, _: Any) -> str:
    """A tick of a logarithmic axis without mathematical type, which a page's own font cannot set."""
    return f"{value:g}"


def _tip(group: Group, kl: Estimate, reward: Estimate) -> str:
    beta = "" if group.beta is None else f", β = {group.beta:g}"
    said = [
        f"{what} {' ± '.join(filter(None, plus_minus(e.mean, e.half)))}" for what, e in (("reward", reward), ("KL", kl))
    ]
    return f"{group.method}{beta}: {', '.join(said)} ({reward.count} seeds)"


def curves(
    metric: str, groups: Sequence[Group], title: str, look: Look, limits: tuple[float, float] | None = None
) -> Draw:
    """The metric over steps: a line a group, its mean over seeds with the 95 % interval, named at its right end."""

    named = labels(look, LINE)

    def drawn(figure: Any) -> None:
        axes = figure.add_subplot()
        lines = [(group, curve) for group in groups if (curve := group.curve(metric))]
        values = [e.mean for _, curve in lines for _, e in curve]
        logarithmic = metric.endswith("loss") and min(values) > 0 and max(values) > LOG_FROM * min(values)
        floor = min(values) if logarithmic else -math.inf
        ends = [_line(axes, curve, look[group.method], named[group.method], floor) for group, curve in lines]
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_formatter("")
        if limits is not None:
            axes.set_ylim(limits)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("step")
        _name_ends(axes, ends)

    return drawn


def _line(
    axes: Any, curve: list[tuple[int, Estimate]], style: dict[str, Any], name: str, floor: float
) -> tuple[Any, ...]:
    """Draws one curve with its band, which ends at the floor; its last value and step, name and colour."""
    steps, mean = [step for step, _ in curve], [e.mean for _, e in curve]
    lone = {"marker": style["marker"]} if len(steps) == 1 else {}
    axes.plot(steps, mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.5, **lone)
    low, high = [max(e.mean - e.half, floor) for _, e in curve], [e.mean + e.half for _, e in curve]
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    return mean[-1], steps[-1], name, style["color"]


def common_limits(metric: str, groups: Sequence[Group]) -> tuple[float, float] | None:
    """Limits that hold the means of the metric in all of the groups; None where it has no range."""
    values = [e.mean for group in groups for _, e in group.curve(metric)]
    room = 0.06 * (max(values) - min(values)) if values else 0.0
    return (min(values) - room, max(values) + room) if room else None


def _name_ends(axes: Any, ends: list[tuple[Any, ...]]) -> None:
    """Writes each curve's name to the right of the axes at its height, pushed apart where they would meet."""
    ends = sorted(ends)
    axes.autoscale_view()  # else the limits are not those of the data yet
    pixels = [axes.transData.transform((step, value)) for value, step, *_ in ends]
    at = [axes.transAxes.inverted().transform(pixel)[1] for pixel in pixels]
    tall = [1 + name.count("\n") for _, _, name, _ in ends]
    steps = [(low + high) / 2 for low, high in itertools.pairwise(tall)]  # lines from one name's middle to the next's
    gap = min(0.085, 1 / max(1.0, sum(steps)))
    heights: list[float] = []
    for i, height in enumerate(at):
        room_above = 1 - gap * sum(steps[i:])
        heights.append(min(max(height, heights[-1] + gap * steps[i - 1] if heights else 0), room_above))
    for height, here, (_, _, name, colour) in zip(heights, at, ends, strict=True):
        axes.plot([1, 1.03], [here, height], transform=axes.transAxes, color=colour, lw=0.7, clip_on=False)
        said = {"color": colour, "fontsize": 8, "va": "center", "linespacing": 1.0}
        axes.text(1.04, height, name, transform=axes.transAxes, **said)
