"""`tables` sums up an encoded data set for a terminal: lengths and returns of its splits, and what was dropped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from shiqrun.report.terminal_messages import brief_text

if TYPE_CHECKING:
    from shiqrun.batching.logged_data import EncodedData
    from shiqrun.batching.rows import Rows

BRIEF = 60
"""Columns of a dropped text."""


def rows_to_show(rows: "Rows", limit: int) -> list[int]:
    """Return the numbers of the first rows, of a mixture the first of each part in turn."""
    import numpy as np

    first = range(min(limit, len(rows)))
    if rows.parts is None:
        return [*first]
    begins = np.searchsorted(rows.parts.number, rows.parts.number)  # of each row its part's first
    return sorted(np.argsort(np.arange(len(rows)) - begins, kind="stable")[: len(first)].tolist())


def tables(encoded: "EncodedData") -> Iterator[Table | Text]:
    """Yield tables of trajectories and prompts with their lengths and returns; then what was dropped, by reason."""
    lengths = Table(title="lengths and returns", title_justify="left")
    for column in ("split", "rows", "prompts", "of a row", "min", "p50", "p90", "max"):
        lengths.add_column(column, justify="left" if column in ("split", "of a row") else "right")
    for split, rows in (("train", encoded.train), ("val", encoded.val)):
        _add_split(lengths, split, rows)
        if rows.parts is not None:
            for part, name in enumerate(rows.parts.names):
                _add_split(lengths, f"{split} {name}", rows, rows.parts.number == part)
    yield lengths
    yield _dropped(encoded) if encoded.dropped else Text("dropped: nothing")


def methods_table(
    facts: Sequence[str], fed: Sequence[str], repeated: Mapping[str, str], refused: Mapping[str, str]
) -> Table:
    """Return a table of the methods that a data set can feed, with its facts as title, and of those that it cannot.

    Args:
        facts: of `facts_of`.
        fed: names of the methods that training accepts.
        repeated: those of them whose loss is that of another one, by name.
        refused: why training refuses the others.
    """
    table = Table(title=f"methods for {', '.join(facts)}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    names = [f"{name} (= {repeated[name]})" if name in repeated else name for name in fed]
    table.add_row("can learn", Text(", ".join(names) or "none"))
    reasons: dict[str, list[str]] = {}
    for name, why in refused.items():
        reasons.setdefault(why.replace(f"algo={name} ", "").replace(name, "it"), []).append(name)
    for why, those in reasons.items():
        table.add_row("cannot", Text(f"{', '.join(those)}: {why}"))
    return table


def _dropped(encoded: "EncodedData") -> Table:
    """Return the table of what was dropped, by reason, with place and text of the first row of each."""
    from shiqrun.data.drops import Drops

    first = encoded.dropped.first if isinstance(encoded.dropped, Drops) else {}
    dropped = Table(title="dropped", title_justify="left")
    dropped.add_column("reason", ratio=3)
    dropped.add_column("number", justify="right", no_wrap=True)
    dropped.add_column("the first of them", ratio=4)
    for reason, count in encoded.dropped.most_common():
        row = first.get(reason)
        shown = Text("" if row is None else f"{row.place}  {brief_text(row.text, BRIEF)}".rstrip())
        dropped.add_row(Text(reason), f"{count:,}", shown)
    return dropped


def _add_split(table: Table, split: str, rows: "Rows", picked: Any = slice(None)) -> None:
    import numpy as np

    prompts = len(np.unique(rows.numbers.numbers("prompt")[picked]))
    head = [split, f"{len(rows.lengths[picked]):,}", f"{prompts:,}"]
    for name, values in (("tokens", rows.lengths), ("actions", rows.actions), ("return", rows.returns)):
        table.add_row(*head, name, *_quantiles(values[picked]), end_section=name == "return")
        head = ["", "", ""]


def _quantiles(values: Any) -> list[str]:
    """Return minimum, median, 90th percentile (values that occur, no interpolation) and maximum, as text."""
    import numpy as np

    known = values[~np.isnan(values)]
    if not len(known):
        return ["-"] * 4
    return [f"{q:,.6g}" for q in np.quantile(known, (0, 0.5, 0.9, 1), method="nearest")]
