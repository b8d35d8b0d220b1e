"""`reward=math_answer`: whether the last number of a completion is the answer, as in GSM8K."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import torch

from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered, Progress, Reward
from shiqrun.types import Message

MARK = "####"
NUMBER = re.compile(
    r"(?:(?<![\w.,)%])(?P<minus>[-\u2212]))?"  # in 7-5 it stands between two numbers
    r"[ ]?[$€£]?[ ]?(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?"
    r"(?P<decimals>\.[0-9]+)?"
)


class MathAnswer(Reward):
    """Compares numbers exactly: 18, 18.00, $18 and 18 dollars are the same, 1,234 is 1234.

    Args:
        right, wrong: reward units.

    Raises:
        InputError: `right` is not above `wrong`.
    """

    def __init__(self, *, right: float, wrong: float) -> None:
        if right <= wrong:
            raise InputError(f"reward.right={right:g}, reward.wrong={wrong:g}: a right answer must get more")
        self.right: float | None = right
        self._right, self._wrong = right, wrong

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """`right` or `wrong` an item.

        Raises:
            InputError: an item whose `answer` has no number behind its last ####, or none at all.
        """
        return [self._right if last_number(x.text) == _wanted(x) else self._wrong for x in items]

    def fingerprint(self) -> str:
        """The settings."""
        return f"math_answer {self._right} {self._wrong}"

    def refuse_seen(self, prompts: Iterable[Sequence[Message]]) -> None:
        """Nothing: it was not trained."""

    def about(self) -> dict[str, Any]:
        """Its name and both rewards."""
        return {"name": "math_answer", "right": self._right, "wrong": self._wrong}


def last_number(text: str) -> Decimal | None:
    """The last number of a text, None if there is none."""
    found = None
    for match in NUMBER.finditer(text):
        if match["digits"] or match["decimals"]:
            found = match
    if found is None:
        return None
    number = Decimal((found["digits"] or "0").replace(",", "") + (found["decimals"] or ""))
    return -number if found["minus"] else number


def _wanted(item: Answered) -> Decimal:
    number = None if item.answer is None else last_number(str(item.answer).rpartition(MARK)[2])
    if number is None:
        raise InputError(
            f"{item.source}: no number in its answer ({str(item.answer)[:60]!r}); reward=math_answer needs a column "
            f"`answer` with the number, or a text that ends in `{MARK} number`"
        )
    return number
