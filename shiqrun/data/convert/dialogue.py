"""A `Dialogue` is what every converter makes of a log, and `row_of` writes it as a row of `data=jsonl`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shiqrun.data.convert.messages import Message
from shiqrun.errors import InputError

Row = dict[str, Any]
PlacedRows = Iterable[tuple[str, Row]]


@dataclass(frozen=True)
class Dialogue:
    """A `Dialogue` is one row to be: the whole chat of a trace, its tools and its scores.

    Attributes:
        name: of the trace, or the place of the row.
        messages: in the form of `messages.py`.
        tools: schemas of the functions that the model could call.
        scores: numbers of the whole trace, by name.
        turn_scores: numbers of assistant turns by name, then by the index of the turn.
        place: file and row where it begins, where its name does not say it.
        dropped: how many parts of the log are left out, by reason.
    """

    name: str
    messages: list[Message]
    tools: list[Row] = field(default_factory=list)
    scores: Mapping[str, float] = field(default_factory=dict)
    turn_scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    place: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def known_as(self) -> str:
        """Return the place and the name, for messages."""
        return f"{self.place}, trace {self.name}" if self.place and self.place != self.name else self.name

    @property
    def turns(self) -> int:
        """The number of assistant messages."""
        return sum(m["role"] == "assistant" for m in self.messages)


@dataclass(frozen=True)
class Format:
    """A `Format` names a tool's log: how its rows are told from others, and how they become dialogues.

    Attributes:
        shape: the columns of a row, for messages.
        fits: whether a row has this shape.
        read: rows with their places to dialogues.
    """

    shape: str
    fits: Callable[[Row], bool]
    read: Callable[[PlacedRows], Iterator[Dialogue]]


@contextmanager
def as_written(name: str, place: str | Callable[[], str]) -> Iterator[None]:
    """Read a row within this block: what a row of another shape raises becomes an `InputError`.

    Args:
        name: the format's.
        place: file and row, or what gives them when the block fails.
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        met = f"no {error}" if isinstance(error, KeyError) else error
        where = place if isinstance(place, str) else place()
        raise InputError(f"{where}: not as {name} writes it ({met}); export it again, or remove it") from error


def score_of(value: Any, place: str) -> float:
    """Return a score as a number; a bool is 1 or 0.

    Raises:
        InputError: neither a number nor a bool.
    """
    if isinstance(value, bool | int | float):
        return float(value)
    raise InputError(f"{place}: the score is {value!r}; expected a number, true or false")


def row_of(dialogue: Dialogue, score: str | None) -> tuple[str, Row]:
    """Return the column that holds rewards ("reward", "rewards" or "") and the row, with the score as reward."""
    row: Row = {"messages": dialogue.messages}
    if dialogue.tools:
        row["tools"] = dialogue.tools
    kind = ""
    if score is not None and score in dialogue.scores:
        kind = "reward"
        row[kind] = dialogue.scores[score]
    elif score is not None and score in dialogue.turn_scores:
        kind = "rewards"
        row[kind] = [dialogue.turn_scores[score].get(turn, 0.0) for turn in range(dialogue.turns)]
    return kind, {**row, "trace": dialogue.name}
