"""The columns of `data=jsonl` have their names here, by the form of a row; `UnreadColumns` tells of all others once."""

import logging
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal

from shiqrun.data.token_columns import SEVERAL, SINGLE, SPANS

log = logging.getLogger("shiqrun")

Form = Literal["pair", "several", "single", "chat"]
FORMS: Mapping[Form, tuple[str, ...]] = {
    "pair": ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    "several": ("prompt", "completions", "rewards"),
    "single": ("prompt", "completion", "reward", "rewards"),
    "chat": ("messages", "reward", "rewards"),
}
"""The columns of each form of row; the first of these forms that has its own columns is the row's."""
SHAPES: Mapping[Form, str] = {
    "chat": "messages [, reward]",
    "single": "prompt, completion [, reward]",
    "pair": "prompt, chosen, rejected",
    "several": "prompt, completions [, rewards]",
}
"""What each form of row is called in an error; of equally near ones the first is named."""
NEEDED: Mapping[Form, tuple[str, ...]] = {
    "chat": ("messages",),
    "single": ("prompt", "completion"),
    "pair": ("prompt", "chosen", "rejected"),
    "several": ("prompt", "completions"),
}
"""The columns that each form of row must have."""
MARKS: Mapping[Form, tuple[str, ...]] = {
    "pair": ("chosen", "rejected"),
    "several": ("completions",),
    "single": ("completion",),
    "chat": ("messages",),
}
"""The columns by which a row shows its form."""
LABEL = "label"
"""The column that says whether a completion is good, true or false (KTO); of other types it is not read."""
ANSWERS = ("tests", "answer", "answer_json")
"""What a verifier reads: the first of these columns that a row has."""
NAMES = ("prompt_id", "tools", *dict.fromkeys(name for names in FORMS.values() for name in names), *ANSWERS)
"""Every column that has a meaning in some row."""
TEXTS = ("prompt", "completion", "chosen", "rejected")
"""Columns that hold texts, or lists of messages."""
VALUES = tuple({*NAMES, LABEL, *SINGLE, *SEVERAL, SPANS} - {*TEXTS, "prompt_id", "answer", "answer_json"})
"""Columns that never hold plain text."""
ColumnName = Literal[
    "prompt",
    "completion",
    "completions",
    "chosen",
    "rejected",
    "messages",
    "reward",
    "rewards",
    "label",
    "score_chosen",
    "score_rejected",
    "tools",
    "prompt_id",
    "answer",
    "answer_json",
    "tests",
]
"""A key of `data.columns`."""
USUAL = {
    "chosen_score": "score_chosen",
    "rejected_score": "score_rejected",
    "chosen_rating": "score_chosen",
    "rejected_rating": "score_rejected",
    "score": "reward",
    "ground_truth": "answer",
    "functions": "tools",
    "available_tools": "tools",
    "test_cases": "tests",
    "unit_tests": "tests",
}
"""Names that other tools give to columns, and ours."""
LIKELY = {
    "question": "prompt",
    "instruction": "prompt",
    "query": "prompt",
    "input": "prompt",
    "problem": "prompt",
    "response": "completion",
    "output": "completion",
    "generation": "completion",
    "answer": "completion",
    "responses": "completions",
    "outputs": "completions",
    "generations": "completions",
    "conversation": "messages",
    "dialogue": "messages",
    "dialog": "messages",
    "conversations": "messages",
    "turns": "messages",
    "chat": "messages",
    "trajectory": "messages",
    "score": "reward",
    "resolved": "reward",
    "target": "reward",
    "quality": "reward",
    "rating": "reward",
    "preference": "reward",
    "good": "chosen",
    "bad": "rejected",
    "accepted": "chosen",
    "scores": "rewards",
    "preferred": "chosen",
    "dispreferred": "rejected",
}
"""Names of columns in files of unknown shape, and what they may be."""
NEAR = 0.8
"""Similarity (difflib) from which on one name may be meant for another."""


def form_of_row(has: Callable[[str], bool]) -> Form | None:
    """Return the form of a row, or None where it has the columns of none; `has` says which columns it has."""
    return next((form for form, names in MARKS.items() if any(map(has, names))), None)


def read_columns(form: Form, has: Callable[[str], bool]) -> frozenset[str]:
    """Return the names of the columns that are read of a row of that form."""
    answer = next((name for name in ANSWERS if has(name)), "answer")
    tokens: tuple[str, ...] = {"single": SINGLE, "several": SEVERAL}.get(form, ())
    tokens = (*tokens, *([SPANS] if form == "single" and has(SPANS) else [])) if all(map(has, tokens)) else ()
    return frozenset((*FORMS[form], "prompt_id", "tools", answer, *tokens))


@lru_cache(maxsize=1024)
def form_of(there: tuple[str, ...]) -> Form | None:
    """Return the form of the rows that have values in these columns, or None."""
    return form_of_row(there.__contains__)


@lru_cache(maxsize=1024)
def columns_read(there: tuple[str, ...]) -> frozenset[str]:
    """Return the names of the columns that are read of rows that have values in these; none for those without form."""
    form = form_of(there)
    return frozenset() if form is None else read_columns(form, there.__contains__)


def near_name(column: str, names: Iterable[str]) -> str | None:
    """Return the one of the known names that a column's name was perhaps meant for, or None."""
    word, known = column.strip().lower().replace("-", "_").replace(" ", "_"), list(names)
    if (usual := USUAL.get(word)) in known:
        return usual
    return next(iter(get_close_matches(word, known, n=1, cutoff=NEAR)), None)


class UnreadColumns:
    """An `UnreadColumns` names in the log, once each, the columns of a data set that nothing reads."""

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._new: dict[str, tuple[str | None, str]] = {}

    def see(self, row: Mapping[str, Any], read: frozenset[str], place: str, known: Iterable[str] = ()) -> None:
        """Take note of the columns of a row that are not read; null counts as missing.

        Args:
            row: its columns.
            read: the columns that are read of it.
            place: file and row.
            known: names that a column may have been meant for, beside those that are read.
        """
        if row.keys() <= self._named or row.keys() <= read:
            return
        for name in row.keys() - read - self._named:
            if row[name] is not None:
                near = near_name(name, dict.fromkeys((*read, *known)))
                there = near is not None and row.get(near) is not None  # then another name was hardly meant for it
                self._new[name] = None if there else near, place
                self._named.add(name)

    def tell(self) -> None:
        """Log the unread columns that are new: a warning for each that is near a known name, a line for the others."""
        for name in [name for name, (near, _) in sorted(self._new.items()) if near]:
            near, place = self._new.pop(name)
            log.warning(f"{place}: nothing reads column '{name}'; did you mean {near}? rename it, or leave it")
        if self._new:
            place = next(iter(self._new.values()))[1]
            log.info(f"{place}: columns that nothing reads: {', '.join(sorted(self._new))}")
            self._new.clear()
