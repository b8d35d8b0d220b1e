"""The pivotal view of a report shows how the chance of success changes along the tokens of searched solutions.

`shiqrun pivotal` writes the estimates to `pivotal.jsonl` (`shiqrun.estimates.pivotal_search`).
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.report.html_page import Section
from shiqrun.report.run_files import AGAIN, read_lines

FILE = "pivotal.jsonl"
MOST_SOLUTIONS = 24
"""The largest number of solutions on the page."""
COLUMNS = {"prompt", "tokens", "rates", "visited", "pivots", "searched"}
WIDTH, HEIGHT, MARGIN = 720, 132, 30
"""Of a chart, in units of its SVG view box."""
Row = Mapping[str, Any]
"""A line of `pivotal.jsonl`: the search of one solution."""


def chance_along_tokens(row: Row) -> list[float]:
    """Return the chance of success before the first of T tokens and behind each, `[T + 1]`, probabilities.

    Between two estimated positions the chance is interpolated linearly, because the search found no jump there.
    """
    estimates = [(int(x["at"]), float(x["rate"])) for x in row["rates"]]
    chances = [estimates[0][1]] * (estimates[0][0] + 1)
    for (low, first), (high, last) in pairwise(estimates):
        chances += [first + (last - first) * (t - low) / (high - low) for t in range(low + 1, high + 1)]
    return chances + [estimates[-1][1]] * (len(row["tokens"]) + 1 - len(chances))


def pivotal_section(directory: Path) -> Section | None:
    """Return the section about the searches for pivotal tokens in a directory, None where it holds none.

    Raises:
        InputError: a row is no search.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    lines = read_lines(path)
    header, counts, largest = next(lines, {}), Counter[str](), list[Row]()
    for number, row in enumerate(lines, 2):
        if not row.keys() >= COLUMNS:
            raise InputError(f"{path} line {number}: not a search for pivotal tokens; {AGAIN}")
        counts["rows"] += 1
        if row["searched"]:
            counts["searched"] += 1
            counts["positions"] += len(row["visited"])
            counts["places"] += len(row["tokens"]) + 1
            counts["found"] += len(row["pivots"])
            counts["confirmed"] += sum(bool(p.get("confirmed")) for p in row["pivots"])
            largest = heapq.nlargest(MOST_SOLUTIONS, [*largest, row], key=_largest_change)
    values = {
        "facts": _facts(header, counts),
        "rollouts": header.get("rollouts"),
        "gap": header.get("gap"),
        "searched": counts["searched"],
        "solutions": [_solution(row) for row in largest],
    }
    return Section("pivotal", "Pivotal tokens", values)


def _largest_change(row: Row) -> float:
    return max((abs(p.get("delta", p["first"])) for p in row["pivots"]), default=0.0)


def _facts(header: Row, counts: Counter[str]) -> list[tuple[str, str, str]]:
    between = "{} to {}".format(*header.get("between", (0, 1)))
    facts = [
        ("solutions searched", f"{counts['searched']:,}", f"of {counts['rows']:,}; chance of their prompt {between}"),
        ("positions estimated", f"{counts['positions']:,}", f"of {counts['places']:,}"),
        ("tokens found", f"{counts['found']:,}", f"by {header.get('rollouts')} rollouts on either side"),
    ]
    if header.get("again"):
        share = f"{counts['confirmed'] / counts['found']:.0%} of those found, " if counts["found"] else ""
        facts.append(("confirmed", f"{counts['confirmed']:,}", f"{share}by {header['again']} fresh rollouts"))
    return facts


def _solution(row: Row) -> dict[str, Any]:
    """Return a solution's prompt, its tokens with the chance behind each, and its chart."""
    chances, pivots = chance_along_tokens(row), {p["at"]: p for p in row["pivots"]}
    return {
        "prompt": str(row["prompt"][-1].get("content", ""))[:400],
        "tokens": [
            {"text": token, "chance": chances[t + 1], "pivot": pivots.get(t)} for t, token in enumerate(row["tokens"])
        ],
        "chart": _chart(row, chances),
    }


def _chart(row: Row, chances: Sequence[float]) -> dict[str, Any]:
    """Return the coordinates of the chart of the chance over the tokens: its line, estimates, pivots and axis."""
    last = max(len(row["tokens"]), 1)

    def x(token: float) -> float:
        return round(MARGIN + token * (WIDTH - 2 * MARGIN) / last, 1)

    def y(chance: float) -> float:
        return round(HEIGHT - MARGIN + 8 - chance * (HEIGHT - 2 * MARGIN), 1)

    return {
        "width": WIDTH,
        "height": HEIGHT,
        "margin": MARGIN,
        "bottom": y(0),
        "ticks": [(f"{chance:g}", y(chance)) for chance in (0, 0.5, 1)],
        "line": [(x(t), y(chance)) for t, chance in enumerate(chances)],
        "dots": [(x(estimate["at"]), y(estimate["rate"]), estimate) for estimate in row["rates"]],
        "pivots": [(x(pivot["at"] + 0.5), pivot) for pivot in row["pivots"]],
    }
