"""These functions write numbers, intervals and durations as texts that a person reads at a glance."""

import math

NO_NUMBER = "\u2013"
"""Stands where there is no number."""


def format_number(value: float | None) -> str:
    """Return a number as text with four significant figures; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def format_plus_minus(mean: float, half: float) -> tuple[str, str]:
    """Return a mean and half the width of its interval, both rounded to two significant figures of the half width.

    The half width is empty where it is not finite, as that of one seed is.
    """
    if not math.isfinite(half):
        return format_number(mean), ""
    if half == 0:
        return format_number(mean), "0"
    places = _decimal_places(half)
    return f"{mean:,.{places}f}", f"{half:,.{places}f}"


def format_interval(mean: float, low: float, high: float) -> tuple[str, str]:
    """Return a mean and its interval `[low, high]`, rounded to two significant figures of half the interval's width."""
    half = (high - low) / 2
    if half <= 0:
        return format_number(mean), f"[{format_number(low)}, {format_number(high)}]"
    places = _decimal_places(half)
    return f"{mean:,.{places}f}", f"[{low:,.{places}f}, {high:,.{places}f}]"


def _decimal_places(half: float) -> int:
    """Return the number of decimals that show two significant figures, from 0 to 6."""
    return min(6, max(0, 1 - math.floor(math.log10(abs(half)))))


def format_duration(seconds: float) -> str:
    """Return a duration as text in the units that suit it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 180:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
