"""The contract of a reward: an answered prompt in, one number out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from shiqrun.types import Message

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Answered:
    """A prompt with one completion.

    Attributes:
        prompt: chat list.
        completion: the messages that answer it, the last one the assistant's.
        answer: whatever a verifier needs (`Example.answer`).
        source: where it came from, for messages.
    """

    prompt: Sequence[Message]
    completion: Sequence[Message]
    answer: Any = None
    source: str = ""

    @property
    def text(self) -> str:
        """What the assistant said last."""
        return str(self.completion[-1]["content"]) if self.completion else ""


class Reward(Protocol):
    """What `conf/reward/*.yaml` makes. Its keyword-only constructor parameters are the valid keys of its YAML.

    Attributes:
        right: what a right answer gets, where answers are right or wrong, so that pass@k is defined; None elsewhere.
    """

    right: float | None

    def to(self, device: torch.device) -> None:
        """Where to compute."""

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """One number an item, reward units, after centring and scaling; it depends on the item alone.

        Raises:
            InputError: an item that cannot be scored, or a score that is not finite; the message names its source.
        """
        ...

    def fingerprint(self) -> str:
        """Equal fingerprints give equal scores."""
        ...

    def refuse_seen(self, prompts: Iterable[Sequence[Message]]) -> None:
        """Nothing, if none of the prompts was in the reward's own training data as far as that is known.

        Raises:
            InputError: some were; the message says how many and what to do.
        """

    def about(self) -> dict[str, Any]:
        """Name, path, centre and scale: what a reader of the number must know."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A reward that reads tokens, and not more than its context."""

    def context(self) -> int | None:
        """Tokens it can read, None if unknown."""

    def lengths(self, items: Sequence[Answered]) -> list[int]:
        """Tokens of each item."""
        ...


@runtime_checkable
class Judging(Protocol):
    """A reward that says of each item how it fared, in a word that decides the number."""

    def verdicts(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[str]:
        """One word an item.

        Raises:
            InputError: as `score`.
        """
        ...

    def worth(self, word: str) -> float:
        """The reward of a verdict."""
        ...
