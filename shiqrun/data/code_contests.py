"""CodeContests (Li et al. 2022, arXiv 2203.07814) holds contest problems with logged right and wrong programs.

A row's tests and programs are columns of equal length: {"input": [...], "output": [...]} and {"language": [...],
"solution": [...]}. The tests of the statement come first, then the private ones, then the generated ones.
"""

from collections.abc import Iterator
from typing import Any

from shiqrun.data.contests import Contest, ContestProblem
from shiqrun.data.files import Row
from shiqrun.data.problem_rows import Hub, text
from shiqrun.errors import InputError

PYTHON3 = (3, "PYTHON3")
TESTS = ("public_tests", "private_tests", "generated_tests")


class CodeContests(Contest):
    """A `CodeContests` data set yields problems whose programs read standard input; those with files are dropped."""

    name = "code_contests"
    hub = Hub("deepmind/code_contests", None, {"train": "train", "val": "valid"})

    def read(self, row: Row, place: str) -> ContestProblem | str:
        """Return the contest problem of a row, or the reason for which the row is dropped."""
        if row.get("input_file") or row.get("output_file"):
            return "reads or writes files"
        statement = text(row, "description", place, self.name)
        if not statement.strip():
            return "no statement"
        pairs = [pair for column in TESTS for pair in _pairs(row, column, ("input", "output"), place)]
        if not pairs:
            return "no tests"
        for given, expected in pairs:
            if not isinstance(given, str) or not isinstance(expected, str):
                raise InputError(f"{place}: a test's input and output must be texts, found {given!r:.40}")
        tests = [{"input": given, "output": expected} for given, expected in pairs[: self.max_tests]]
        right, wrong = ([*_programs(row, column, place)] for column in ("solutions", "incorrect_solutions"))
        kept = {key: row[key] for key in ("name", "difficulty", "cf_rating") if row.get(key) is not None}
        return ContestProblem(statement, tests, right, wrong, kept)


def _programs(row: Row, column: str, place: str) -> Iterator[str]:
    """Yield the Python 3 programs of a column, as text."""
    for language, program in _pairs(row, column, ("language", "solution"), place):
        if not isinstance(program, str):
            raise InputError(f"{place}: a program of column '{column}' is {program!r:.40}; expected a text")
        if language in PYTHON3:
            yield program


def _pairs(row: Row, column: str, names: tuple[str, str], place: str) -> list[tuple[Any, Any]]:
    """Return the pairs of a column that holds two lists; none where the row has no such column."""
    value = row.get(column)
    if value is None:
        return []
    one, other = (value.get(name) for name in names) if isinstance(value, dict) else (None, None)
    if not isinstance(one, list) or not isinstance(other, list) or len(one) != len(other):
        form = f'{{"{names[0]}": [...], "{names[1]}": [...]}} with lists of equal length'
        raise InputError(f"{place}: column '{column}' is {value!r:.60}; expected {form}")
    return list(zip(one, other, strict=True))
