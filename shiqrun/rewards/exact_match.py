"""`reward=exact_match`: 1 where the completion is the example's answer, else 0."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered, Progress, Reward
from shiqrun.types import Message


class ExactMatch(Reward):
    """Compares texts, white space at both ends aside.

    Args:
        ignore_case: whether upper and lower case are the same.
    """

    right = 1.0

    def __init__(self, *, ignore_case: bool) -> None:
        self.ignore_case = ignore_case

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """1.0 or 0.0 an item.

        Raises:
            InputError: an item without an answer.
        """
        return [float(self._plain(item.text) == self._plain(self._answer(item))) for item in items]

    def fingerprint(self) -> str:
        """The settings."""
        return f"exact_match ignore_case={self.ignore_case}"

    def refuse_seen(self, prompts: Iterable[Sequence[Message]]) -> None:
        """Nothing: it was not trained."""

    def about(self) -> dict[str, Any]:
        """Its name, both rewards and its setting."""
        return {"name": "exact_match", "right": 1.0, "wrong": 0.0, "ignore_case": self.ignore_case}

    def _answer(self, item: Answered) -> str:
        if item.answer is None:
            raise InputError(f"{item.source}: no answer to compare with; reward=exact_match needs a column `answer`")
        return str(item.answer)

    def _plain(self, text: str) -> str:
        text = text.strip()
        return text.casefold() if self.ignore_case else text
