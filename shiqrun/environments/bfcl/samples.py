"""`load_samples` reads the 200 samples of BFCL multi-turn with their reference answers and function documents.

They are read from the installed `bfcl-eval` (which also brings the backends), or from a directory with the same files,
compressed by gzip or not.
"""

import gzip
import importlib.metadata
import importlib.util
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError

RELEASE = "2025.6.8"
"""The release of `bfcl-eval` whose questions the ShiQ paper used; see docs/bfcl.md."""
INSTALL = f"pip install --no-deps bfcl-eval=={RELEASE} && pip install mpmath"
DOCUMENTS = {
    "GorillaFileSystem": "gorilla_file_system.json",
    "MathAPI": "math_api.json",
    "MessageAPI": "message_api.json",
    "TwitterAPI": "posting_api.json",
    "TicketAPI": "ticket_api.json",
    "TradingBot": "trading_bot.json",
    "TravelAPI": "travel_booking.json",
    "VehicleControlAPI": "vehicle_control.json",
}
NEEDED = ("id", "question", "initial_config", "involved_classes")
TEST_EVERY, TEST_REST = 5, 4
"""index % 5 == 4 is a test sample: 40 of 200, in which every class takes part."""


@dataclass(frozen=True)
class BfclSample:
    """A `BfclSample` is a sample of BFCL multi-turn: a dialogue that a policy is to play.

    Attributes:
        id: as in the file, `multi_turn_base_17`.
        index: place in the file.
        questions: the user's messages, one a turn.
        row: `id`, `initial_config`, `involved_classes`, and `ground_truth`: for each turn a list of calls.
        documents: descriptions of the functions of its classes, as in the files.
        source: file and line, for error messages.
    """

    id: str
    index: int
    questions: list[str]
    row: dict[str, Any]
    documents: list[dict[str, Any]]
    source: str

    @property
    def classes(self) -> list[str]:
        """Return the names of the backends that take part."""
        return list(self.row["involved_classes"])

    @property
    def truth(self) -> list[list[str]]:
        """Return the calls of the reference answer, by turn."""
        return list(self.row["ground_truth"])

    @property
    def documented(self) -> frozenset[str]:
        """Return the names of the functions that may be called."""
        return frozenset(d["name"] for d in self.documents)

    @property
    def is_test(self) -> bool:
        """Return whether this is one of the 40 test samples."""
        return self.index % TEST_EVERY == TEST_REST


def installed_data() -> Path:
    """Return the data directory of the installed `bfcl-eval`.

    Raises:
        InputError: `bfcl-eval` or mpmath is not installed.
    """
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or found.origin is None or importlib.util.find_spec("mpmath") is None:
        raise InputError(f"data=bfcl plays against the functions of bfcl-eval, which is not installed: {INSTALL}")
    return Path(found.origin).parent / "data"


def release() -> str | None:
    """Return the release of the installed `bfcl-eval`, None if it is not installed."""
    try:
        return importlib.metadata.version("bfcl-eval")
    except importlib.metadata.PackageNotFoundError:
        return None


def load_samples(folder: Path) -> list[BfclSample]:
    """Load all BFCL samples of a directory, in file order.

    Raises:
        InputError: a file is missing, a row is no sample, or a sample has no reference answer.
    """
    truths: dict[str, Any] = {}
    for place, row in _rows(_file(folder, "possible_answer*BFCL_v*_multi_turn_base.json")):
        truths[_entry(row, "id", place)] = _entry(row, "ground_truth", place)
    samples = []
    for index, (place, row) in enumerate(_rows(_file(folder, "BFCL_v*_multi_turn_base.json"))):
        for key in NEEDED:
            _entry(row, key, place)
        if row["id"] not in truths:
            raise InputError(f"{place}: {row['id']} has no reference answer in possible_answer")
        if len(truths[row["id"]]) != len(row["question"]):
            raise InputError(
                f"{place}: {row['id']} has {len(row['question'])} turns but {len(truths[row['id']])} reference answers"
            )
        questions = ["\n".join(message["content"] for message in turn) for turn in row["question"]]
        documents = [d for name in row["involved_classes"] for d in _documents(folder, name, place)]
        kept = {key: row[key] for key in ("id", "initial_config", "involved_classes")}
        samples.append(
            BfclSample(row["id"], index, questions, kept | {"ground_truth": truths[row["id"]]}, documents, place)
        )
    return samples


def _entry(row: dict[str, Any], key: str, place: str) -> Any:
    if key not in row:
        raise InputError(f"{place}: no {key!r}; it has {', '.join(row) or 'nothing'}")
    return row[key]


def _file(folder: Path, pattern: str) -> Path:
    """Return the newest data file that matches a name, in the directory or in `possible_answer/`."""
    found = [*folder.glob(pattern), *folder.glob(f"{pattern}.gz"), *folder.glob(pattern.replace("*", "/", 1))]
    if not found:
        raise InputError(f"{folder}: no {pattern}; give a directory with the files of bfcl-eval's data")
    return sorted(found, key=lambda path: path.name)[-1]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{path}:{number}", _row(line, f"{path}:{number}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch it again") from None


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: no JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object")
    return row


@lru_cache(maxsize=64)
def _documents(folder: Path, class_name: str, place: str) -> list[dict[str, Any]]:
    if class_name not in DOCUMENTS:
        raise InputError(f"{place}: class {class_name!r}; known are {', '.join(DOCUMENTS)}")
    path = folder / "multi_turn_func_doc" / DOCUMENTS[class_name]
    if not path.is_file():
        raise InputError(f"{path}: the documents of {class_name} are not there")
    return [row for _, row in _rows(path)]
