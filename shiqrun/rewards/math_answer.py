"""`reward=math_answer` rewards a completion whose last number is the example's answer, as in GSM8K."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered, Progress, Reward

MARK = "####"
NUMBER = re.compile(
    r"(?:(?<![\w.,)%])(?P<minus>[-\u2212]))?"  # the minus of 7-5 is no sign
    r"[ ]?[$€£]?[ ]?(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?"
    r"(?P<decimals>\.[0-9]+)?"
)


class MathAnswer(Reward):
    """A math-answer reward compares numbers exactly: 18, 18.00, $18 and 18 dollars are the same, 1,234 is 1234.

    Args:
        right, wrong: reward units.

    Raises:
        InputError: `right` is not above `wrong`.
    """

    repeatable = True

    def __init__(self, *, right: float, wrong: float) -> None:
        if right <= wrong:
            raise InputError(f"reward.right={right:g}, reward.wrong={wrong:g}: a right answer must get more")
        self.right: float | None = right
        self._right, self._wrong = right, wrong

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return the reward of each completion, `right` or `wrong`, reward units.

        Raises:
            InputError: the `answer` of an item has no number behind its last ####, or is missing.
        """
        return [self._right if last_number(x.text) == _answer(x) else self._wrong for x in items]

    def fingerprint(self) -> str:
        """Return the settings of the reward, which decide its scores."""
        return f"math_answer {self._right} {self._wrong}"

    def about(self) -> dict[str, Any]:
        """Return the reward's name and its two values."""
        return {"name": "math_answer", "right": self._right, "wrong": self._wrong}


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text, None if there is none."""
    found = None
    for match in NUMBER.finditer(text):
        if match["digits"] or match["decimals"]:
            found = match
    if found is None:
        return None
    number = Decimal((found["digits"] or "0").replace(",", "") + (found["decimals"] or ""))
    return -number if found["minus"] else number


def _answer(item: Answered) -> Decimal:
    number = None if item.answer is None else last_number(str(item.answer).rpartition(MARK)[2])
    if number is None:
        raise InputError(
            f"{item.source}: no number in its answer ({str(item.answer)[:60]!r}); reward=math_answer needs a column "
            f"`answer` with the number, or a text that ends in `{MARK} number`"
        )
    return number
