"""`convert` streams logs into one JSON-lines file and counts what it read, kept and dropped."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from shiqrun.console import count_of, track
from shiqrun.data.convert.dialogue import Dialogue, PlacedRows, Row, as_written, row_of
from shiqrun.data.convert.registry import FORMATS
from shiqrun.data.files import data_files, read_rows
from shiqrun.errors import InputError
from shiqrun.util.atomic import atomic_writer

SILENT = "no model message"


@dataclass
class Summary:
    """A `Summary` counts the dialogues of a conversion: read, kept, with tools, and dropped by reason."""

    read: int = 0
    kept: int = 0
    tools: int = 0
    score: str | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, name: str, number: int = 1) -> None:
        """Count a dropped dialogue, or parts of one; of each reason the first name is kept with the count."""
        first, count = self.dropped.get(reason, [name, "0"])
        self.dropped[reason] = [first, str(int(count) + number)]

    def __str__(self) -> str:
        rewarded = f"; reward from score `{self.score}`" if self.kinds["reward"] + self.kinds["rewards"] else ""
        parts = [f"{count_of(self.read, 'dialogue')}: {self.kept:,} written, {self.tools:,} with tools{rewarded}"]
        return "; ".join([*parts, *self.losses()])

    def losses(self) -> list[str]:
        """Return what was dropped: a phrase for each reason."""
        return [f"{n} dropped: {reason} (first: {first})" for reason, (first, n) in self.dropped.items()]


def convert(files: Iterable[Path], name: str, out: Path, score: str | None) -> Summary:
    """Write the rows of logs to a file, which appears when it is whole.

    Args:
        files: logs, JSON lines or Parquet; in JSON also a list of objects.
        name: a key of FORMATS.
        out: the JSON-lines file.
        score: the name of the score that becomes the reward; None takes the only one.

    Raises:
        InputError: a broken row, a file of another format, several scores without a choice, or nothing to write.
    """
    summary, names = Summary(), set[str]()
    with TemporaryFile("w+", encoding="utf-8") as waiting:
        for dialogue in track(_dialogues(files, name), f"reading {name}"):
            summary.read += 1
            names |= dialogue.scores.keys() | dialogue.turn_scores.keys()
            for reason, number in dialogue.dropped.items():
                if number:
                    summary.drop(reason, dialogue.known_as, number)
            if not dialogue.turns:
                summary.drop(SILENT, dialogue.known_as)
                continue
            summary.score = score or (sorted(names)[0] if names else None)
            _stage(waiting, dialogue, summary)
        _expect_one_score(names, score, summary)
        waiting.seek(0)
        best = next((kind for kind in ("reward", "rewards") if summary.kinds[kind]), "")
        with atomic_writer(out) as file:
            for line in waiting:
                kind, _, row = line.partition(" ")
                if kind == best:
                    file.write(row)
                    summary.kept += 1
                    summary.tools += '"tools": ' in row and "tools" in json.loads(row)
                else:
                    summary.drop(f"no score `{summary.score}` of the kind that others have", json.loads(row)["trace"])
            if not summary.kept:
                cure = "; record the content of messages, too" * (SILENT in summary.dropped)
                raise InputError(f"{out}: nothing to write; {summary}{cure}")
    return summary


def _stage(waiting: IO[str], dialogue: Dialogue, summary: Summary) -> None:
    """Write a row to the waiting file with its kind of reward before it: only whole files know which kind they have."""
    kind, row = row_of(dialogue, summary.score)
    summary.kinds[kind] += 1
    waiting.write(f"{kind} {json.dumps(row, ensure_ascii=False)}\n")


def _expect_one_score(names: set[str], score: str | None, summary: Summary) -> None:
    found = ", ".join(sorted(names)) or "none"
    if score is not None and score not in names:
        raise InputError("; ".join([f"--reward {score}: no such score; found {found}", *summary.losses()]))
    if score is None and len(names) > 1:
        raise InputError(f"several scores: {found}; choose the reward with --reward NAME")


def _dialogues(files: Iterable[Path], name: str) -> Iterator[Dialogue]:
    """Yield the dialogues of all files; an error of a reader is one of the row that it read last."""
    last = [""]

    def noted() -> Iterator[tuple[str, Row]]:
        for place, row in _checked(files, name):
            last[0] = place
            yield place, row

    with as_written(name, lambda: last[0]):
        yield from FORMATS[name].read(noted())


def _checked(files: Iterable[Path], name: str) -> PlacedRows:
    """Yield the rows of all files after checking that each has the shape of the format."""
    for file in files:
        for place, row in _rows(file):
            if not FORMATS[name].fits(row):
                near = [other for other, known in FORMATS.items() if known.fits(row)]
                cure = f"this looks like --from {near[0]}" if near else "is it another tool's log?"
                there = ", ".join(row) or "nothing"
                raise InputError(f"{place}: {name} has {FORMATS[name].shape}; the row has {there}; {cure}")
            yield place, row


def _rows(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a file; a `.json` that is one value over several lines is a list of rows, or one row."""
    value = _whole(file) if file.suffix == ".json" and file.is_file() else None
    if value is None:
        yield from read_rows(file)
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(row, dict):
            raise InputError(f"{file} row {number}: expected an object, found {type(row).__name__}; remove it")
        yield f"{file} row {number}", row


def _whole(file: Path) -> object:
    """Return the value of a file that holds one JSON value, or None where its first line is a row by itself."""
    (found,) = data_files(file)
    try:
        with found.open(encoding="utf-8-sig") as lines:
            first = lines.readline().strip()
        if first.startswith("{") and first.endswith("}"):
            return None
        return json.loads(found.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8; convert the file") from None
    except ValueError as error:
        raise InputError(f"{file}: broken JSON ({error}); expected a list of objects, or one object a line") from None
