"""`OwnColumns` gives the columns of a user's file the names that `data=jsonl` knows, as `data.columns` says."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from shiqrun.data.columns import LIKELY
from shiqrun.errors import InputError


class OwnColumns:
    """An `OwnColumns` renames the columns of one reading of a file, and finds settings that no row fits.

    Args:
        names: the file's own column by the name that it gets.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self._never: set[str] | None = None
        self._there: Iterable[str] = ()

    def rename(self, row: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the row with its columns renamed; another column that had one of these names is left out.

        Raises:
            InputError: the first row has a column of nearly the same name instead of one that is to be renamed.
        """
        if not self.names:
            return row
        if self._never is None:
            self._never, self._there = set(self.names), list(row)
            for name, own in self.names.items():
                if own not in row and get_close_matches(own, self._there, n=1):
                    raise self._error(name, place)
        self._never -= {name for name in self._never if self.names[name] in row}
        kept = {name: v for name, v in row.items() if name not in self.names and name not in self.names.values()}
        return type(row)(kept | {name: row[own] for name, own in self.names.items() if own in row})

    def expect_all(self, path: str) -> None:
        """Check, after the last row, that each column that was to be renamed was in some row.

        Raises:
            InputError: one was in none.
        """
        for name in self._never or ():
            raise self._error(name, path)

    def _error(self, name: str, place: str) -> InputError:
        own = self.names[name]
        near = get_close_matches(own, list(self._there), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return InputError(
            f"data.columns.{name}={own}: {place} has no such column; {hint}it has {', '.join(self._there)}"
        )


def likely_columns(row: Mapping[str, Any]) -> str:
    """Return the settings `data.columns.NAME=COLUMN` by which a row of unknown shape may be read; empty if unknown."""
    there, found = {name for name, value in row.items() if value is not None}, dict[str, str]()
    for own in row:
        name = LIKELY.get(own.strip().lower())
        if name and own in there and name not in there and name not in found:
            found[name] = own
    return " ".join(f"data.columns.{name}={own}" for name, own in found.items())
