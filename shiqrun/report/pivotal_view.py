"""The picture of a search for pivotal tokens: each solution's chance of success along its tokens."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.report.html_page import Section, facts, note
from shiqrun.report.run_files import AGAIN, read_lines

FILE = "pivotal.jsonl"
MOST = 24
"""Trajectories on the page."""
COLUMNS = {"prompt", "tokens", "rates", "visited", "pivots", "searched"}
WIDTH, HEIGHT, MARGIN = 720, 132, 30
Row = Mapping[str, Any]


def along(row: Row) -> list[float]:
    """Chance of success behind each of the T tokens and before the first, T + 1 numbers.

    Between positions that were estimated it is drawn as a straight line: the search found no jump there.
    """
    known = [(int(x["at"]), float(x["rate"])) for x in row["rates"]]
    found = [known[0][1]] * (known[0][0] + 1)
    for (low, first), (high, last) in pairwise(known):
        found += [first + (last - first) * (t - low) / (high - low) for t in range(low + 1, high + 1)]
    return found + [known[-1][1]] * (len(row["tokens"]) + 1 - len(found))


def pivotal_section(directory: Path) -> Section | None:
    """The pictures of the searches in a directory, None where it holds none.

    Raises:
        InputError: a row that is no search.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    lines = read_lines(path)
    header, count, shown = next(lines, {}), Counter[str](), list[Row]()
    for number, row in enumerate(lines, 2):
        if not row.keys() >= COLUMNS:
            raise InputError(f"{path} line {number}: no search for pivotal tokens; {AGAIN}")
        count["rows"] += 1
        if row["searched"]:
            count["searched"] += 1
            count["positions"] += len(row["visited"])
            count["places"] += len(row["tokens"]) + 1
            count["found"] += len(row["pivots"])
            count["confirmed"] += sum(bool(p.get("confirmed")) for p in row["pivots"])
            shown = heapq.nlargest(MOST, [*shown, row], key=_largest)
    words = (
        "How likely the reference is to end in a right answer after each token of a solution: dots are estimates by "
        f"{header.get('rollouts')} rollouts, lines between them where no jump of {header.get('gap')} was found. Tokens "
        "are blue where success is likely and orange where it is not; marked ones are pivotal by the first estimates, "
        "with the change that fresh rollouts from both sides gave."
    )
    if len(shown) < count["searched"]:
        words += f" Here are the {len(shown)} solutions with the largest changes."
    return Section("pivotal", "Pivotal tokens", _facts(header, count) + note(words) + "".join(map(_one, shown)))


def _largest(row: Row) -> float:
    return max((abs(p.get("delta", p["first"])) for p in row["pivots"]), default=0.0)


def _facts(header: Row, count: Counter[str]) -> str:
    between = "{} to {}".format(*header.get("between", (0, 1)))
    entries = [
        ("solutions searched", f"{count['searched']:,}", f"of {count['rows']:,}; chance of their prompt {between}"),
        ("positions estimated", f"{count['positions']:,}", f"of {count['places']:,}"),
        ("tokens found", f"{count['found']:,}", f"by {header.get('rollouts')} rollouts on either side"),
    ]
    if header.get("again"):
        share = f"{count['confirmed'] / count['found']:.0%} of those found, " if count["found"] else ""
        entries.append(("confirmed", f"{count['confirmed']:,}", f"{share}by {header['again']} fresh rollouts"))
    return facts(entries)


def _one(row: Row) -> str:
    chances = along(row)
    prompt = escape(str(row["prompt"][-1].get("content", ""))[:400])
    tokens = "".join(_token(row, t, chances[t + 1]) for t in range(len(row["tokens"])))
    return f'<h3>{prompt}</h3><div class="tokens">{tokens}</div><figure class="one">{_chart(row, chances)}</figure>'


def _token(row: Row, t: int, chance: float) -> str:
    """A token on the colour of the chance behind it."""
    pivot = next((p for p in row["pivots"] if p["at"] == t), None)
    side, strength = ("up" if chance >= 0.5 else "down"), abs(chance - 0.5) * 1.3
    marked = "outline: 2px solid var(--ink); outline-offset: -1px;" if pivot else ""
    style = f"background: rgba(var(--{side}), {strength:.3f}); {marked}"
    tip = f"success behind this token: {chance:.2f}" + (f"; {_told(pivot)}" if pivot else "")
    return f'<span class="t" style="{style}" title="{escape(tip)}">{escape(row["tokens"][t]) or "∅"}</span>'


def _told(pivot: Row) -> str:
    if "delta" not in pivot:
        return f"{pivot['first']:+.2f}"
    sure = "confirmed" if pivot["confirmed"] else "not confirmed"
    return f"{pivot['first']:+.2f}, on fresh rollouts {pivot['delta']:+.2f}: {sure}"


def _chart(row: Row, chances: Sequence[float]) -> str:
    """The chance over the tokens as SVG, with a dashed line and a figure at each token found."""
    last = max(len(row["tokens"]), 1)

    def x(t: float) -> float:
        return MARGIN + t * (WIDTH - 2 * MARGIN) / last

    def y(chance: float) -> float:
        return HEIGHT - MARGIN + 8 - chance * (HEIGHT - 2 * MARGIN)

    line = " ".join(f"{x(t):.1f},{y(c):.1f}" for t, c in enumerate(chances))
    axis = "".join(
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="var(--line)"/>'
        f'<text x="{MARGIN - 5}" y="{y(v) + 4:.1f}" text-anchor="end" font-size="11" fill="var(--quiet)">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    dots = "".join(
        f'<circle cx="{x(v["at"]):.1f}" cy="{y(v["rate"]):.1f}" r="3.2" fill="rgb(var(--up))">'
        f"<title>after {v['at']} tokens: {v['rate']:.2f}</title></circle>"
        for v in row["rates"]
    )
    marks = "".join(
        f'<line x1="{x(p["at"] + 0.5):.1f}" x2="{x(p["at"] + 0.5):.1f}" y1="14" y2="{y(0):.1f}" '
        f'stroke="{"var(--ink)" if p.get("confirmed", True) else "var(--quiet)"}" stroke-dasharray="3 3"/>'
        f'<text x="{x(p["at"] + 0.5):.1f}" y="10" text-anchor="middle" font-size="11" fill="var(--ink)">'
        f"{escape(row['tokens'][p['at']].strip())} {p.get('delta', p['first']):+.2f}</text>"
        for p in row["pivots"]
    )
    below = (
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle" font-size="11" fill="var(--quiet)">tokens</text>'
    )
    drawn = f'<polyline points="{line}" fill="none" stroke="rgb(var(--up))" stroke-width="1.6"/>'
    said = "chance of success along the tokens"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{axis}{marks}{drawn}{dots}{below}</svg>'
