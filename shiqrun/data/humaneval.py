"""HumanEval (Chen et al. 2021, arXiv 2107.03374) holds 164 Python functions to complete, each with unit tests.

The prompt is a function's signature and docstring, the logged completion the whole function. `Example.answer` is what
`reward=unit_tests` reads: the tests, and the reference solution, from which the tested calls are learned.
All problems are one split, of which a share is held out; `eval.split=train data.val_fraction=0` evaluates on all.
"""

from collections.abc import Iterator
from typing import Annotated

from annotated_types import Len

from shiqrun.data.problem_rows import Hub, ProblemRows, check_rewards, example, text
from shiqrun.data.source import Source
from shiqrun.types import Example

HUB = Hub("openai/openai_humaneval", None, {"train": "test"})
COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


class HumanEval(Source):
    """A `HumanEval` data set yields the problems with their reference solutions as logged completions.

    Args:
        path: `HumanEval.jsonl[.gz]` or a Parquet file; None reads the Hub.
        rewards: of a right and of a wrong completion, reward units; the reference solution is right.
    """

    def __init__(self, *, path: str | None, rewards: Annotated[list[float], Len(2, 2)]) -> None:
        self._right, _ = self.right_and_wrong = check_rewards(rewards)
        self._rows = ProblemRows(path, HUB)
        self.splits = self._rows.splits

    def load(self, split: str) -> Iterator[Example]:
        """Yield the examples of a split, in file order.

        Raises:
            InputError: no network, an unreadable file or a row of another form.
        """
        for place, row in self._rows.read_split(split):
            task, prompt, solution, test, name = (text(row, column, place, "humaneval") for column in COLUMNS)
            answer = {"entry_point": name, "prefix": prompt, "check": test, "solution": solution}
            yield example(prompt, [(prompt + solution, self._right)], answer, place, {"task_id": task})
