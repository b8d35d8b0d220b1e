"""`Contest` is the base class of the programming-contest data sets: one example per problem, in Python 3 alone."""

import ast
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Len

from shiqrun.data.drops import drop
from shiqrun.data.files import Row, read_rows
from shiqrun.data.problem_rows import Hub, ProblemRows, check_rewards, example, is_readable
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example

STORY = 40
"""The least number of letters before a heading `Input` at which the heading ends the story of a statement."""


@dataclass(frozen=True)
class ContestProblem:
    """A `ContestProblem` holds one contest problem: its statement, its tests, and logged right and wrong programs.

    Attributes:
        statement: the prompt's text.
        tests: in the form that `reward=unit_tests` reads.
        right, wrong: Python 3 programs that solve the problem, and that do not.
        columns: further columns of the row.
    """

    statement: str
    tests: Any
    right: Sequence[str]
    wrong: Sequence[str] = ()
    columns: dict[str, Any] = field(default_factory=dict)


class Contest(Source):
    """A `Contest` data set yields one example per contest problem, with logged right and wrong programs.

    Args:
        path: a file, or a directory of files named after the Hub's splits; None reads the Hub.
        without: a file or directory of the other data set, whose problems are left out; None leaves out none.
        per_problem: right programs of a problem at most, and as many wrong ones: the first of the file.
        max_tests: tests of a problem at most, the first of the file.
        unsolved: what becomes of problems without a right program: left out, or kept for sampling from a policy.
        rewards: of a right and of a wrong program.
    """

    name: ClassVar[str]
    hub: ClassVar[Hub]

    def __init__(
        self,
        *,
        path: str | None,
        without: str | None,
        per_problem: Annotated[int, Ge(1)],
        max_tests: Annotated[int, Ge(1)],
        unsolved: Literal["drop", "keep"],
        rewards: Annotated[list[float], Len(2, 2)],
    ) -> None:
        self._right, self._wrong = self.right_and_wrong = check_rewards(rewards)
        self._without, self._most, self.max_tests, self._unsolved = without, per_problem, max_tests, unsolved
        self._rows = ProblemRows(path, self.hub, any_text=True)
        self.splits = self._rows.splits

    def load(self, split: str) -> Iterator[Example]:
        """Yield the examples of a split, in file order; count in `dropped` what is left out.

        Raises:
            InputError: no network, an unreadable file or a row of another form.
        """
        self.dropped.clear()
        elsewhere = frozenset() if self._without is None else frozenset(_names_in(self._without))
        seen: set[str] = set()
        for place, row in self._rows.read_split(split):
            made = self.read(row, place)
            if isinstance(made, str):
                drop(self.dropped, made, place)
                continue
            if not is_readable(made.statement):
                drop(self.dropped, "a statement that is empty or not UTF-8", place)
                continue
            name = statement_name(made.statement)
            if name in elsewhere or name in seen:
                why = "also in data.without" if name in elsewhere else "the same problem as an earlier row"
                drop(self.dropped, why, place, made.statement)
                continue
            seen.add(name)
            right, wrong = self._programs(made.right, place), self._programs(made.wrong, place)
            if not right and self._unsolved == "drop":
                drop(self.dropped, "no Python 3 solution", place, made.statement)
                continue
            said = [(program, self._right) for program in right] + [(program, self._wrong) for program in wrong]
            yield example(made.statement, said, made.tests, place, made.columns)

    def read(self, row: Row, place: str) -> ContestProblem | str:
        """Return the contest problem of a row, or the reason for which the row is dropped.

        Raises:
            InputError: a row of another form.
        """
        raise NotImplementedError

    def _programs(self, given: Sequence[str], place: str) -> list[str]:
        """Return the first `per_problem` different programs that are readable text; count the others as dropped."""
        kept: dict[str, None] = {}
        for program in given:
            if len(kept) == self._most:
                break
            if is_readable(program):
                kept.setdefault(program)
            else:
                drop(self.dropped, "a program that is empty or not UTF-8", place)
        return list(kept)


def statement_name(statement: str) -> str:
    """Return a hash of a problem statement that is the same for its copies in different data sets.

    The hash is of the letters and digits of the statement's story, case aside. The story ends at the first line that
    says `Input` alone: each collection lays out otherwise what follows.
    """
    story = re.split(r"(?mi)^\W*input\W*$", statement, maxsplit=1)[0]
    plain = _plain(story)
    return blake2b((plain if len(plain) >= STORY else _plain(statement)).encode(), digest_size=8).hexdigest()


def _plain(text: str) -> str:
    """Return the letters and digits of a text, case and Unicode variants aside."""
    composed = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode()).casefold()
    return re.sub(r"[\W_]+", "", composed)


def _names_in(path: str) -> Iterator[str]:
    """Yield the `statement_name` of every problem in the files of another contest data set."""
    for place, row in read_rows(path, any_text=True):
        statement = row.get("description", row.get("question"))
        if not isinstance(statement, str):
            raise InputError(
                f"{place}: no text in column 'description' or 'question', found {', '.join(row) or 'nothing'}; "
                "data.without names a file of data=code_contests or data=taco"
            )
        yield statement_name(statement)


def is_python3(program: str) -> bool:
    """Return whether a text parses as a Python 3 program; nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the text may hold invalid escapes
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the parser raises all of these
        return False
    return True
