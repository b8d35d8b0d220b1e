"""`reward=programs` rewards a completion whose program is right on the hidden examples of `data=programs`."""

from collections.abc import Sequence
from typing import Any

from shiqrun.data.program_language import Digits, parse, run
from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered, Progress, Reward

NEEDED = 'reward=programs needs `answer`: {"base": ..., "tests": [{"input": [...], "output": [...]}, ...]}'


class Programs(Reward):
    """A programs reward runs programs of the language of `shiqrun.data.program_language`; any other text is wrong.

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
        self._wrong = wrong

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return the reward of each completion, `right` or `wrong`, reward units.

        Raises:
            InputError: an item has no hidden examples.
        """
        assert self.right is not None
        return [self.right if _solves(item) else self._wrong for item in progress(items, "running programs")]

    def fingerprint(self) -> str:
        """Return the settings of the reward, which decide its scores."""
        return f"programs right={self.right} wrong={self._wrong}"

    def about(self) -> dict[str, Any]:
        """Return the reward's name and its two values."""
        return {"name": "programs", "right": self.right, "wrong": self._wrong}


def _solves(item: Answered) -> bool:
    base, tests = _examples(item)
    program = parse(item.text)
    return program is not None and all(run(program, xs, base) == ys for xs, ys in tests)


def _examples(item: Answered) -> tuple[int, list[tuple[Digits, Digits]]]:
    """Return the base of an item's numbers and its hidden examples, (input, output) each."""
    answer = item.answer if isinstance(item.answer, dict) else {}
    base, tests = answer.get("base"), answer.get("tests")
    if not isinstance(base, int) or not isinstance(tests, list) or not tests:
        raise InputError(f"{item.source}: no hidden examples, found {item.answer!r:.60}; {NEEDED}")
    try:
        return base, [(tuple(test["input"]), tuple(test["output"])) for test in tests]
    except (TypeError, KeyError):
        raise InputError(f"{item.source}: a hidden example lacks input or output, in {tests!r:.60}; {NEEDED}") from None
