"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168) holds math word problems with worked solutions that end in a number.

A solution ends in `#### 42`; the answer of an example is that number without its commas, for `reward=math_answer`.
"""

import re
from collections.abc import Iterator
from typing import Annotated

from annotated_types import Len

from shiqrun.data.problem_rows import Hub, ProblemRows, check_rewards, example, text
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example

HUB = Hub("openai/gsm8k", "main", {"train": "train", "val": "test"})
FINAL = re.compile(r"####\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*$")


class GSM8K(Source):
    """A `GSM8K` data set yields the problems with their worked solutions; the test problems are the validation split.

    Args:
        path: a file with `question` and `answer`, or a directory of files named train and test; None reads the Hub.
        rewards: of a right and of a wrong completion, reward units; the logged solutions are right.
    """

    def __init__(self, *, path: str | None, rewards: Annotated[list[float], Len(2, 2)]) -> None:
        self._right, _ = self.right_and_wrong = check_rewards(rewards)
        self._rows = ProblemRows(path, HUB)
        self.splits = self._rows.splits

    def load(self, split: str) -> Iterator[Example]:
        """Yield the examples of a split, in file order.

        Raises:
            InputError: no network, an unreadable file, or a solution that does not end in `#### number`.
        """
        for place, row in self._rows.read_split(split):
            question, solution = (text(row, column, place, "gsm8k") for column in ("question", "answer"))
            final = FINAL.search(solution)
            if final is None:
                raise InputError(f"{place}: column 'answer' ends in {solution[-40:]!r}; expected '#### number'")
            yield example(question, [(solution, self._right)], final[1].replace(",", ""), place)
