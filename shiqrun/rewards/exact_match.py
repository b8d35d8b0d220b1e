"""`reward=exact_match` gives 1 where the completion equals the example's answer, else 0."""

from collections.abc import Sequence
from typing import Any

from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered, Progress, Reward


class ExactMatch(Reward):
    """An exact-match reward compares the completion with `Example.answer`, without white space at both ends.

    Args:
        ignore_case: whether upper and lower case count as the same.
    """

    right = 1.0
    repeatable = True

    def __init__(self, *, ignore_case: bool) -> None:
        self.ignore_case = ignore_case

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return the reward of each completion, 1.0 or 0.0.

        Raises:
            InputError: an item has no answer.
        """
        return [float(self._plain(item.text) == self._plain(self._answer(item))) for item in items]

    def fingerprint(self) -> str:
        """Return the settings of the reward, which decide its scores."""
        return f"exact_match ignore_case={self.ignore_case}"

    def about(self) -> dict[str, Any]:
        """Return the reward's name, its two values and its setting."""
        return {"name": "exact_match", "right": 1.0, "wrong": 0.0, "ignore_case": self.ignore_case}

    def _answer(self, item: Answered) -> str:
        if item.answer is None:
            raise InputError(f"{item.source}: no answer to compare with; reward=exact_match needs a column `answer`")
        return str(item.answer)

    def _plain(self, text: str) -> str:
        text = text.strip()
        return text.casefold() if self.ignore_case else text
