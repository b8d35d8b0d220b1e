"""`curve_values` draws the learning curves of a report: methods at their best betas, and some metrics at every beta."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from shiqrun.report.curve_plot import common_limits, curve_plot, panel_height
from shiqrun.report.frontier_plot import OPTIMUM
from shiqrun.report.plots import PANEL, Plot, Styles
from shiqrun.report.seed_groups import KL, LOSS, RETURN, REWARD, SeedGroup

CURVES = {
    REWARD: "reward of the policy's answers",
    KL: "KL to the reference, nats a sequence",
    RETURN: "regularised return",
    "val/reward_per_turn": "reward of a turn",
    "val/official_score": "official score",
    "val/regret": "regret",
    "val/pass@1": "solved by one try",
    "val/pass@10": "solved by one of ten tries",
    "val/win_rate": "win rate against the reference",
    "val/completions/mean_length": "length of the answers, tokens",
    "val/entropy": "entropy, nats a token",
    "val/logratio_mean": "log-ratio on the data's tokens, nats",
}
"""The metrics with a learning curve on the page, each method at its best beta, and the titles of the curves."""
LOSSES = {"train/loss": "training loss", LOSS: "validation loss"}
"""The metrics that have a unit of their own in each method, so that two methods never share axes."""
CURVES_BY_BETA = (REWARD, KL)
"""The metrics whose curves are also drawn for every beta."""
Draw = Callable[[str, str, Plot, tuple[float, float]], Markup]
"""Writes a figure by name, title, plot and size, and returns it as an element of the page."""


def curve_values(
    groups: Sequence[SeedGroup], best: Mapping[str, SeedGroup], styles: Styles, draw: Draw
) -> dict[str, Any]:
    """Return what the report's section of learning curves shows; empty where there is no curve.

    Args:
        groups: the runs by method and beta.
        best: each method at its best beta.
        styles: of each method.
        draw: writes a figure.
    """
    panels = _Panels(styles, draw)
    chosen = list(best.values())
    algos = list(dict.fromkeys(group.runs[0].algo for group in chosen))
    shown = [panels.draw(metric, title, chosen) for metric, title in CURVES.items() if _is_known(metric, chosen)]
    losses = [
        panels.draw(metric, f"{title}: {algo}" if len(algos) > 1 else title, same, algo if len(algos) > 1 else "")
        for algo in algos
        for metric, title in LOSSES.items()
        if _is_known(metric, same := [group for group in chosen if group.runs[0].algo == algo])
    ]
    by_beta = _panels_by_beta(groups, panels)
    if not (shown or losses or by_beta):
        return {}
    return {
        "panels": shown + (losses if len(algos) == 1 else []),
        "losses": losses if len(algos) > 1 else [],
        "panels_by_beta": by_beta,
        "many_betas": len(groups) > len(best),
        "any_unfinished": not all(group.finished for group in chosen),
    }


def _is_known(metric: str, groups: Sequence[SeedGroup]) -> bool:
    return any(group.curve(metric) for group in groups)


class _Panels:
    """Panels are the figures of learning curves, each with a file name of its own."""

    def __init__(self, styles: Styles, draw: Draw) -> None:
        self._styles, self._draw, self._names = styles, draw, set[str]()

    def draw(
        self,
        metric: str,
        title: str,
        groups: Sequence[SeedGroup],
        part: str = "",
        limits: tuple[float, float] | None = None,
    ) -> Markup:
        """Draw a metric of some groups; `part` tells the file from others of the metric."""
        name = "_".join(["curve", *(re.sub(r"[^\w.-]+", "_", word) for word in (metric, part) if word)])
        while name in self._names:
            name += "_"
        self._names.add(name)
        optimum = _optimum(groups) if metric == RETURN else None
        plot = curve_plot(metric, groups, title, self._styles, limits, optimum)
        return self._draw(name, title, plot, (PANEL[0], panel_height(groups)))


def _optimum(groups: Sequence[SeedGroup]) -> float | None:
    """Return the best possible regularised return, None where it is unknown or the groups have different ones."""
    values = [run.final[OPTIMUM] for group in groups for run in group.finished if OPTIMUM in run.final]
    same = values and max(values) - min(values) <= 1e-6 * max(map(abs, values))
    return math.fsum(values) / len(values) if same else None


def _panels_by_beta(groups: Sequence[SeedGroup], panels: _Panels) -> list[list[Markup]]:
    """Return the curve panels of each metric, one for each beta, with the same axis limits."""
    betas = sorted({group.beta for group in groups if group.beta is not None})
    found = []
    for metric in CURVES_BY_BETA if len(betas) > 1 else ():
        limits = common_limits(metric, groups)
        by_beta = {beta: [group for group in groups if group.beta == beta] for beta in betas}
        found.append(
            [
                panels.draw(metric, f"β = {beta:g}: {CURVES[metric]}", same, f"beta_{beta:g}", limits)
                for beta, same in by_beta.items()
                if _is_known(metric, same)
            ]
        )
    return found
