"""TACO (Li et al. 2023, arXiv 2312.14852) holds contest problems that ask for a whole program or for a function.

Programs and tests are JSON texts. `input_output` is {"inputs": [...], "outputs": [...]}; for a function it also has
`fn_name`, and an input is the list of the function's arguments. TACO logs right programs only; those that do not parse
as Python 3 are left out. Methods of a class are left out, since the grader calls functions.
"""

import json
from typing import Any

from shiqrun.data.contests import Contest, ContestProblem, is_python3
from shiqrun.data.drops import drop
from shiqrun.data.files import Row
from shiqrun.data.problem_rows import Hub, text
from shiqrun.errors import InputError


class Taco(Contest):
    """A `Taco` data set yields problems that ask for a program that reads and prints, or for a function."""

    name = "taco"
    hub = Hub("BAAI/TACO", None, {"train": "train", "val": "test"}, arrow=True)

    def read(self, row: Row, place: str) -> ContestProblem | str:
        """Return the contest problem of a row, or the reason for which the row is dropped."""
        question = text(row, "question", place, self.name)
        if not question.strip():
            return "no statement"
        try:
            cases = _json(row, "input_output", {}, place)
            programs = _json(row, "solutions", [], place)
        except OverflowError:
            return "a test with a number too long to be read"
        inputs, outputs = cases.get("inputs") or [], cases.get("outputs") or []
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise InputError(f"{place}: column 'input_output' needs lists `inputs` and `outputs` of equal length")
        if not inputs:
            return "no tests"
        name, starter = cases.get("fn_name"), row.get("starter_code") or ""
        if name and (not str(name).isidentifier() or "class Solution" in starter):
            return "a method of a class"
        tests = _calls(name, inputs, outputs) if name else _streams(inputs, outputs)
        if isinstance(tests, str):
            return tests
        if isinstance(tests, dict):
            tests["calls"] = tests["calls"][: self.max_tests]
        else:
            tests = tests[: self.max_tests]
        if not all(isinstance(program, str) for program in programs):
            raise InputError(f"{place}: column 'solutions' must be a list of texts")
        right = [program for program in programs if is_python3(program)]
        wrong = next((program for program in programs if program not in right), "")
        drop(self.dropped, "a program that is not Python 3", place, wrong, len(programs) - len(right))
        kept = {key: row[key] for key in ("name", "source", "difficulty") if row.get(key) is not None}
        return ContestProblem(_statement(question, starter, name), tests, right, columns=kept)


def _statement(question: str, starter: str, name: str | None) -> str:
    """Return the text of the prompt: the question, the starter code, and the name of the function if there is one."""
    parts = [question.strip(), starter.rstrip()]
    if name and name not in starter:
        parts.append(f"Name the function `{name}`.")
    return "\n\n".join(part for part in parts if part)


def _json(row: Row, column: str, empty: Any, place: str) -> Any:
    """Return the parsed JSON of a column, which must have the type of `empty`; `empty` where the column is missing.

    Raises:
        InputError: broken JSON, or a value of another type.
        OverflowError: an integer of more digits than Python reads.
    """
    said = row.get(column)
    if said is None or said == "":
        return empty
    try:
        value = json.loads(said) if isinstance(said, str) else said
    except (ValueError, RecursionError) as error:
        if "integer string conversion" in str(error):
            raise OverflowError from None
        raise InputError(f"{place}: column '{column}' holds broken JSON ({error})") from None
    if not isinstance(value, type(empty)):
        kind = "an object" if isinstance(empty, dict) else "a list"
        raise InputError(f"{place}: column '{column}' is {value!r:.40}; expected the JSON of {kind}")
    return value


def _streams(inputs: list[Any], outputs: list[Any]) -> list[dict[str, str]] | str:
    """Return the input-output tests of a program, or a text that says why there are none; lists hold lines of text."""
    texts = [[_lines(value) for value in pair] for pair in zip(inputs, outputs, strict=True)]
    if any(value is None for pair in texts for value in pair):
        return "tests that are neither texts nor lists of lines"
    return [{"input": str(given), "output": str(expected)} for given, expected in texts]


def _lines(value: Any) -> str | None:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return value if isinstance(value, str) else None


def _calls(name: str, inputs: list[Any], outputs: list[Any]) -> dict[str, Any] | str:
    """Return the calls that test a function, or a text that says why there are none.

    Where every output is a list of one value, the function returns that value: most sites write it so, and a list of
    one element cannot be told apart from it.
    """
    if not all(isinstance(arguments, list) for arguments in inputs):
        return "calls whose arguments are no list"
    wrapped = all(isinstance(value, list) and len(value) == 1 for value in outputs)
    returned = [value[0] for value in outputs] if wrapped else outputs
    calls = [{"args": given, "output": value} for given, value in zip(inputs, returned, strict=True)]
    return {"entry_point": name, "calls": calls}
