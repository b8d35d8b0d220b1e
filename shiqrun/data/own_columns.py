"""`OwnColumns` gives the columns of a user's file the names that `data=jsonl` knows, as `data.columns` says."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from shiqrun.data.columns import LIKELY, NEEDED, SHAPES
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


def likely_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of a row of unknown shape that may be known ones, by the name that each would get."""
    there, found = {name for name, value in row.items() if value is not None}, dict[str, str]()
    for own in row:
        name = "messages" if _is_chat(row[own]) else LIKELY.get(own.strip().lower())
        if name and own in there and name not in there and name not in found:
            found[name] = own
    return found


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def nearest_shape(row: Mapping[str, Any]) -> str:
    """Return what an error says of a row of unknown shape: the nearest known shape, and settings that may fit."""
    likely = likely_columns(row)
    known = {name for name, value in row.items() if value is not None} | likely.keys()
    form = max(SHAPES, key=lambda form: sum(name in known for name in NEEDED[form]) / len(NEEDED[form]))
    missing = [name for name in NEEDED[form] if name not in known]
    settings = " ".join(f"data.columns.{name}={own}" for name, own in likely.items())
    if len(missing) == len(NEEDED[form]):
        shapes = "; or ".join(SHAPES.values())
        return f"known shapes are {shapes}; name its columns by data.columns.NAME=COLUMN"
    nearest = f"the nearest shape is {SHAPES[form]}"
    if missing:
        lacks = f"it lacks {' and '.join(missing)}, which data.columns.{missing[0]}=COLUMN may name"
        return f"{nearest}: {lacks}" + (f"; did you mean {settings}?" if settings else "")
    return f"{nearest}; did you mean {settings}?"
