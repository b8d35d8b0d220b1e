"""`csv_rows` reads the rows of a CSV or TSV file, and `typed_cells` the values that its cells spell."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError

LARGEST_CELL = 2**31 - 1
WORDS = {"true": "true", "false": "false"}
"""Truth values in any letters, and as JSON spells them."""


class CsvRow(dict[str, Any]):
    """A `CsvRow` holds the cells of a row as text, without the empty ones; `typed_cells` gives them their types."""


def csv_rows(lines: Iterable[str], file: Path, separator: str) -> Iterator[tuple[str, CsvRow]]:
    """Yield (place, row) of each row of a CSV file, whose first row names the columns; a cell may span lines.

    Args:
        lines: of the file.
        file: for messages.
        separator: between cells.

    Raises:
        InputError: no or repeated column names, or a row with more or fewer cells, or an open quotation mark.
    """
    csv.field_size_limit(LARGEST_CELL)  # a prompt may be longer than the library's 128 KiB
    reader = csv.reader(lines, delimiter=separator, strict=True)
    names, before = None, 0
    try:
        for cells in reader:
            place, before = f"{file}:{before + 1}", reader.line_num
            if not cells:
                continue
            if names is None:
                names = _column_names(cells, place)
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{place}: {len(cells)} cells, but {file}:1 names {len(names)} columns; put cells that hold "
                    f"'{separator}' or line breaks into quotation marks"
                )
            yield place, CsvRow((name, cell) for name, cell in zip(names, cells, strict=True) if cell)
    except csv.Error as error:
        raise InputError(f"{file}:{before + 1}: broken CSV ({error}); write the file again, or as JSON lines") from None


def _column_names(cells: list[str], place: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names):
        raise InputError(f"{place}: column {names.index('') + 1} has no name; the first row names the columns")
    if repeated := next((name for n, name in enumerate(names) if name in names[:n]), None):
        raise InputError(f"{place}: the column '{repeated}' stands there twice; rename one")
    return names


def typed_cells(row: dict[str, Any], text: Iterable[str], values: Iterable[str]) -> dict[str, Any]:
    """Return the row of a CSV file with the values that its cells spell.

    Args:
        row: columns, cells as text.
        text: columns of texts or lists of messages: a cell that spells a list of objects becomes one.
        values: columns of numbers, true and false, lists and objects, as JSON spells them. All others stay text.
    """
    texts, typed = set(text), set(values)
    return {
        name: _messages(cell) if name in texts else _value(cell) if name in typed else cell
        for name, cell in row.items()
    }


def _messages(cell: str) -> Any:
    if not cell.lstrip().startswith("["):
        return cell
    value = _value(cell)
    return value if isinstance(value, list) and all(isinstance(entry, dict) for entry in value) else cell


def _value(cell: str) -> Any:
    try:
        value = json.loads(WORDS.get(cell.strip().lower(), cell))
    except (ValueError, RecursionError):
        return cell
    return cell if value is None else value
