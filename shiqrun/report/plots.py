"""Every figure of a report has its methods' styles from here, and is written from here: as files and on the page."""

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from shiqrun.report.seed_groups import ORDER
from shiqrun.toy.plotting import COLOURS, DPI, STYLE, save_pdf

INK, QUIET = "#24292f", "#6e7781"
"""Colours of text and axes in the files; the page replaces them by its own (`inline_svg`)."""
PALETTE = (*COLOURS, "#7b3294")
"""The colours of lines and markers: ten, as `ORDER` has methods."""
TEXT_COLOURS = (
    "#0072b3",
    "#b34f00",
    "#007a58",
    "#a8477e",
    "#8f6200",
    "#20749f",
    "#000001",
    "#7a5c12",
    "#6b6b6b",
    "#7b3295",
)
"""For each colour of the palette one in which small text can be read on white, unlike any other colour of a figure."""
MARKERS = "osD^vPX<>hp*"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
WIDE, NARROW, PANEL = (7.4, 4.6), (3.7, 5.0), (3.7, 2.6)
"""Sizes in inches; a CSS inch is 96 pixels, so that NARROW fits a phone."""
FORMATS = ("png", "pdf", "svg")
"""The formats of the files beside the page."""
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
LINE, MOST_LINES = 22, 3
"""Characters of a line of a method's label, and the largest number of lines."""
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
        "color": PALETTE[place % len(PALETTE)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[(place // len(PALETTE) + place) % len(DASHES)],
    }


def method_labels(methods: Iterable[str], line: int = LINE) -> dict[str, str]:
    """Return each method's label in a figure: its name wrapped to `line` characters; no two labels are alike."""
    wrapped: dict[str, str] = {}
    for name in methods:
        lines = textwrap.wrap(name, line, break_on_hyphens=False) or [name]
        label = "\n".join(lines[:MOST_LINES]) + "…" * (len(lines) > MOST_LINES)
        again = sum(other == label or other.startswith(f"{label} #") for other in wrapped.values())
        wrapped[name] = f"{label} #{again + 1}" if again else label
    return wrapped


def text_colour(style: Mapping[str, Any]) -> str:
    """Return the colour of text that names a method with this style."""
    return TEXT_COLOURS[PALETTE.index(style["color"])]


def page_colour(colour: str) -> str:
    """Return the CSS value by which a page shows one of the colours of figures, in light and in dark."""
    for kind, palette in (("line", PALETTE), ("text", TEXT_COLOURS)):
        if colour.lower() in (own := [one.lower() for one in palette]):
            return f"var(--{kind}-{own.index(colour.lower())})"
    return colour


def write_figure(plot: Plot, size: tuple[float, float], stem: Path, formats: Sequence[str] = FORMATS) -> str:
    """Draw a figure of the report, write it to `stem.png`, `stem.pdf` and `stem.svg`, and return the SVG text.

    Args:
        plot: draws on the empty figure.
        size: width and height in inches.
        stem: path of the files without extension.
        formats: those of `FORMATS` that are written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC_PARAMS):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        plot(figure)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # saving the SVG has laid the figure out already
        files = {ending: stem.with_name(f"{stem.name}.{ending}") for ending in formats}
        if "svg" in files:
            files["svg"].write_text(svg.getvalue(), encoding="utf-8")
        if "pdf" in files:
            save_pdf(figure, files["pdf"])
        if "png" in files:
            figure.savefig(files["png"], dpi=DPI)
    return svg.getvalue()


def inline_svg(svg: str, name: str, title: str, tips: Mapping[str, str]) -> Markup:
    """Return an SVG file as an element of the page, in the page's colours.

    Args:
        svg: of `write_figure`.
        name: put before every id, so that ids of two figures differ.
        title: the alternative text.
        tips: id of a group to its tooltip.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for point, text in tips.items():
        body = body.replace(f'<g id="{point}">', f'<g id="{point}" class="tip"><title>{escape(text)}</title>')
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    page = {INK: "currentColor", QUIET: "var(--quiet)", "#ffffff": "var(--page)", "#b0b0b0": "var(--line)"}
    body = re.sub(r"(?<=[:\s])#[0-9a-f]{6}\b", lambda found: page.get(found[0], page_colour(found[0])), body)
    return Markup(body.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))


def plain_tick(value: float, _: Any) -> str:
    """Return the label of a logarithmic tick without mathematical notation, which the page's font cannot set."""
    return f"{value:g}"
