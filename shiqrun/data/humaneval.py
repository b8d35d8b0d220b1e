"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 Python functions to complete, each with code that tests it.

The prompt is the function's head and documentation, the logged completion the whole function, and the answer is what
`reward=unit_tests` reads: the code that tests, and the reference solution, which shows with what it is called.
All problems are one split, of which a share is held out; `eval.split=train data.val_fraction=0` answers all of them.
"""

from collections.abc import Iterator
from typing import Annotated

from annotated_types import Len

from shiqrun.data.problem_rows import Hub, Rows, checked_rewards, example, text
from shiqrun.data.source import Source
from shiqrun.types import Example

HUB = Hub("openai/openai_humaneval", None, {"train": "test"})
COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


class HumanEval(Source):
    """The problems with their reference solutions.

    Args:
        path: `HumanEval.jsonl[.gz]` or a Parquet file; None reads the Hub.
        rewards: of a right and of a wrong answer; the reference solution is right.
    """

    def __init__(self, *, path: str | None, rewards: Annotated[list[float], Len(2, 2)]) -> None:
        self._right, _ = checked_rewards(rewards)
        self._rows = Rows(path, HUB)
        self.splits = self._rows.splits

    def load(self, split: str) -> Iterator[Example]:
        """The examples of a split, in file order.

        Raises:
            InputError: no network, an unreadable file or a row of another form.
        """
        for place, row in self._rows.of(split):
            task, prompt, solution, test, name = (text(row, column, place, "humaneval") for column in COLUMNS)
            answer = {"entry_point": name, "prefix": prompt, "check": test, "solution": solution}
            yield example(prompt, [(prompt + solution, self._right)], answer, place, {"task_id": task})
