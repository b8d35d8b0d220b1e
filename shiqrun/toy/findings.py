"""The findings of a study are records, tables of means over seeds and a figure, written as CSV, PNG and SVG."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from shiqrun.toy import plotting
from shiqrun.util.intervals import interval

Record = Mapping[str, Any]
"""One measurement: the seed, the settings and the numbers, by name."""


@dataclass(frozen=True)
class Crosstab:
    """A cross table holds means over seeds with 95 % intervals, laid out by two keys of the records.

    Attributes:
        title: heading of the table.
        rows: key of the records whose values are the rows.
        columns: key of the records whose values are the columns.
        value: key of the number; an infinite one is shown as `never`.
        records: one for each seed and cell.
        digits: number of decimals.
    """

    title: str
    rows: str
    columns: str
    value: str
    records: Sequence[Record]
    digits: int = 3

    def cells(self) -> dict[tuple[Any, Any], tuple[float, float]]:
        """Return each cell's mean over seeds and half of its interval by (row, column), in the records' order."""
        numbers: dict[tuple[Any, Any], list[float]] = {}
        for record in self.records:
            numbers.setdefault((record[self.rows], record[self.columns]), []).append(record[self.value])
        return {place: interval(values) for place, values in numbers.items()}

    def as_table(self) -> Table:
        """Return the cross table for the terminal."""
        cells = self.cells()
        columns = list(dict.fromkeys(column for _, column in cells))
        table = Table(title=self.title, title_justify="left")
        table.add_column(self.rows)
        for column in columns:
            table.add_column(str(column), justify="right")
        for row in dict.fromkeys(row for row, _ in cells):
            table.add_row(str(row), *(self._cell_text(cells.get((row, column))) for column in columns))
        return table

    def _cell_text(self, cell: tuple[float, float] | None) -> str:
        if cell is None:
            return ""
        if not math.isfinite(cell[0]):
            return "never"
        mean, half = (round(x, self.digits) + 0.0 for x in cell)  # + 0.0: no minus sign before a zero
        return f"{mean:,.{self.digits}f} ± {half:,.{self.digits}f}"


@dataclass(frozen=True)
class Findings:
    """Findings hold the records, tables and figure of one study.

    Attributes:
        name: name of the study and of its files.
        records: every measurement, all with the same keys.
        tables: the tables that are printed.
        draw: draws the study's figure on an empty matplotlib figure.
    """

    name: str
    records: Sequence[Record]
    tables: Sequence[Crosstab]
    draw: Callable[[Any], None]

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.csv with a row for each record, NAME.png, NAME.pdf and NAME.svg; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / f"{self.name}.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.records[0]))
            writer.writeheader()
            writer.writerows(self.records)
        return [table, *plotting.save_figure(self.draw, folder / self.name)]

    def summary(self) -> dict[str, float | None]:
        """Return the means in the study's tables by `value/column/row`; None where a table says `never`."""
        return {
            f"{table.value}/{column}/{row}".replace("\n", ", "): mean if math.isfinite(mean) else None
            for table in self.tables
            for (row, column), (mean, _) in table.cells().items()
        }


def seed_records(seeds: Iterable[int], values: Iterable[float], name: str, **shared: Any) -> Iterator[dict[str, Any]]:
    """Yield a record for each seed: the shared keys, `seed`, and the value under `name`."""
    for seed, value in zip(seeds, values, strict=True):
        yield {**shared, "seed": seed, name: float(value)}
