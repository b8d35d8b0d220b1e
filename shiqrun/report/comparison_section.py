"""`comparison_section` makes the section of a report about a comparison: verdict, table, frontier on test prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shiqrun.report import plots
from shiqrun.report.comparison import ComparedMethods, compared_methods
from shiqrun.report.comparison_tables import chosen_table, points_on_test, settings_table
from shiqrun.report.frontier_plot import LEAST_POINTS, frontier_plot
from shiqrun.report.html_page import Section
from shiqrun.report.run_records import RunCollection

ANCHOR, FIGURE = "comparison", "comparison"


def comparison_section(found: RunCollection, folder: Path, formats: Sequence[str]) -> list[Section]:
    """Return the section of the first comparison among the sweeps of a report, and draw its figure; empty without one.

    Raises:
        InputError: a file of a run is broken.
    """
    sweep = next((sweep for sweep in found.sweeps if sweep.state.get("comparison")), None)
    compared = None if sweep is None else compared_methods(sweep, found.runs)
    return (
        []
        if compared is None or not compared.chosen
        else [Section(ANCHOR, "Comparison", _values(compared, folder, formats))]
    )


def _values(found: ComparedMethods, folder: Path, formats: Sequence[str]) -> dict[str, Any]:
    styles = plots.method_styles(list(found.settings))
    colours = {name: plots.page_colour(style["color"]) for name, style in styles.items()}
    points, figures = points_on_test(found), list[Markup]()
    for name, size in ((FIGURE, plots.WIDE), (f"{FIGURE}_narrow", plots.NARROW)):
        if len(points) < LEAST_POINTS:
            break
        svg = plots.write_figure(
            frontier_plot(points, styles, found.reference), size, folder / "figures" / name, formats
        )
        tips = {f"point{i}": point.tip for i, point in enumerate(points)}
        figures.append(plots.inline_svg(svg, name, "reward over KL on test prompts, a point a method and beta", tips))
    several = any(len(settings) > 1 for settings in found.settings.values())
    reasons: dict[str, list[str]] = {}
    for name, why in found.left_out.items():
        reasons.setdefault(why.replace(f"algo={name} ", ""), []).append(name)
    return {
        "sentences": [] if found.verdict is None else found.verdict.sentences(),
        "notes": found.at_an_end(),
        "chosen": chosen_table(found, colours),
        "every": settings_table(found, colours) if several else None,
        "figures": figures,
        "left_out": [(", ".join(names), why) for why, names in reasons.items()],
        "failed": found.failed,
    }
