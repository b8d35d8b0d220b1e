"""What a study found: one record a seed, tables of means with 95 % intervals, a figure; written as CSV, PNG, SVG."""

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


@dataclass(frozen=True)
class Crosstab:
    """Means over seeds with 95 % intervals, laid out by two columns of the records.

    Attributes:
        title: above the table.
        rows: the records' key whose values are the table's rows.
        columns: the same for its columns.
        value: the key of the number; infinite where a seed never got there.
        records: one a seed and cell.
        digits: after the point.
    """

    title: str
    rows: str
    columns: str
    value: str
    records: Sequence[Record]
    digits: int = 3

    def cells(self) -> dict[tuple[Any, Any], tuple[float, float]]:
        """(row, column) -> (mean, half width of its interval), in the order of the records."""
        numbers: dict[tuple[Any, Any], list[float]] = {}
        for record in self.records:
            numbers.setdefault((record[self.rows], record[self.columns]), []).append(record[self.value])
        return {place: interval(values) for place, values in numbers.items()}

    def rendered(self) -> Table:
        """The table as it is printed."""
        cells = self.cells()
        columns = list(dict.fromkeys(column for _, column in cells))
        table = Table(title=self.title, title_justify="left")
        table.add_column(self.rows)
        for column in columns:
            table.add_column(str(column), justify="right")
        for row in dict.fromkeys(row for row, _ in cells):
            table.add_row(str(row), *(self._shown(cells.get((row, column))) for column in columns))
        return table

    def _shown(self, cell: tuple[float, float] | None) -> str:
        if cell is None:
            return ""
        if not math.isfinite(cell[0]):
            return "never"
        mean, half = (round(x, self.digits) + 0.0 for x in cell)  # + 0.0: no minus sign before a zero
        return f"{mean:,.{self.digits}f} ± {half:,.{self.digits}f}"


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        name: of the study and of its files.
        records: every number, one a seed; all with the same keys.
        tables: what is printed.
        draw: draws on an empty figure.
    """

    name: str
    records: Sequence[Record]
    tables: Sequence[Crosstab]
    draw: Callable[[Any], None]

    def write(self, folder: Path) -> list[Path]:
        """The files made: NAME.csv with a row a record, NAME.png, NAME.svg."""
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / f"{self.name}.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.records[0]))
            writer.writeheader()
            writer.writerows(self.records)
        return [table, *plotting.save(self.draw, folder / self.name)]

    def summary(self) -> dict[str, float | None]:
        """The means of the tables, `value/column/row`; None for what never happened."""
        return {
            f"{table.value}/{column}/{row}".replace("\n", ", "): mean if math.isfinite(mean) else None
            for table in self.tables
            for (row, column), (mean, _) in table.cells().items()
        }


def each_seed(seeds: Iterable[int], values: Iterable[float], name: str, **shared: Any) -> Iterator[dict[str, Any]]:
    """One record a seed: the shared keys, `seed`, and the value under `name`."""
    for seed, value in zip(seeds, values, strict=True):
        yield {**shared, "seed": seed, name: float(value)}
