"""`Drops` counts rows that are left out by reason, and remembers the first of each reason to show it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from shiqrun.types import Message


class DroppedRow(NamedTuple):
    """A `DroppedRow` is the first row that was left out for a reason: its place (file and row) and its text."""

    place: str
    text: str


class Drops(Counter[str]):
    """A `Drops` is a `Counter` of reasons that also holds the first row of each reason, where that is known."""

    @cached_property
    def first(self) -> dict[str, DroppedRow]:
        """Return the first row that was left out, by reason."""
        return {}

    def update(self, iterable: Any = None, /, **counts: int) -> None:
        """Add counts, and take over the first rows of another `Drops`."""
        super().update(iterable, **counts)
        for reason, row in iterable.first.items() if isinstance(iterable, Drops) else ():
            self.first.setdefault(reason, row)

    def of_part(self, name: str) -> "Drops":
        """Return the same with the name of a mixture's part before each reason."""
        made = Drops({f"{name}: {reason}": number for reason, number in self.items()})
        made.first.update({f"{name}: {reason}": row for reason, row in self.first.items()})
        return made

    def facts(self) -> dict[str, Any]:
        """Return counts and first rows as JSON values."""
        return {"dropped": list(self.items()), "first": self.first}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Drops":
        """Return what `facts` gave."""
        made = cls(dict(facts["dropped"]))
        made.first.update({reason: DroppedRow(*row) for reason, row in facts["first"].items()})
        return made

    def clear(self) -> None:
        """Forget all counts and rows."""
        super().clear()
        self.first.clear()


LONGEST_TEXT = 400
"""Characters of a dropped row that are kept."""


def drop(dropped: Counter[str], reason: str, place: str, said: Sequence[Message] | str = "", number: int = 1) -> None:
    """Count what is left out for a reason, and remember the first of it if the counter is a `Drops`.

    Args:
        dropped: the counter.
        reason: in words.
        place: file and row.
        said: what is left out, messages or a text.
        number: of completions.
    """
    dropped[reason] += number
    if number and isinstance(dropped, Drops) and reason not in dropped.first:
        text = said if isinstance(said, str) else _words(said)
        dropped.first[reason] = DroppedRow(place, text[:LONGEST_TEXT])


def _words(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the words of messages, with the role before each."""
    return " ".join(f"{m['role']}: {m.get('content') or ''}" for m in messages)
