"""Numbers as a person reads them, and as a table in a file."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTHING = "\u2013"
"""Stands where there is no number."""


def number(value: float | None) -> str:
    """Four significant figures; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def plus_minus(mean: float, half: float) -> tuple[str, str]:
    """The mean and half width to two significant figures of the width; the width is empty where there is none."""
    if not math.isfinite(half):
        return number(mean), ""
    if half == 0:
        return number(mean), "0"
    places = _places(half)
    return f"{mean:,.{places}f}", f"{half:,.{places}f}"


def between(mean: float, low: float, high: float) -> tuple[str, str]:
    """The mean, and `[low, high]`, all to two significant figures of half the interval."""
    half = (high - low) / 2
    if half <= 0:
        return number(mean), f"[{number(low)}, {number(high)}]"
    places = _places(half)
    return f"{mean:,.{places}f}", f"[{low:,.{places}f}, {high:,.{places}f}]"


def _places(half: float) -> int:
    return min(6, max(0, 1 - math.floor(math.log10(abs(half)))))


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds < 180:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """A CSV file; None and NaN are empty fields."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([["" if _nothing(cell) else cell for cell in row] for row in rows])
    return path


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
