"""The contract of a reward: an answered prompt in, one number out."""

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from shiqrun.errors import InputError
from shiqrun.types import Message
from shiqrun.util.adopt import Adopted

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


class Reward(ABC):
    """A reward, made by `conf/reward/*.yaml`; the keyword-only parameters of its constructor are the keys of its YAML.

    Only `score` must be written. `as_reward` lends the other methods to a class that does not inherit from this one.

    Attributes:
        right: what a right completion gets, where completions are right or wrong, so that pass@k is defined; None
            elsewhere.
    """

    right: float | None = None

    def to(self, device: torch.device) -> None:  # noqa: B027 - a hook that only models need
        """Move to the device where to compute."""

    @abstractmethod
    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return one number an item, reward units, after centring and scaling; it depends on the item alone.

        Raises:
            InputError: an item that cannot be scored, or a score that is not finite; the message names its source.
        """

    def fingerprint(self) -> str:
        """Return a text that is equal for rewards that give equal scores: by default of the class and its attributes.

        The default reads the source of the class, and attributes that JSON can say; functions that the class calls
        are not read.
        """
        subject = getattr(self, "_given", self)
        kind = type(subject)
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):
            source = ""
        parts = [f"{kind.__module__}.{kind.__qualname__}", source, getattr(subject, "__dict__", {})]
        text = json.dumps(parts, sort_keys=True, default=lambda value: type(value).__qualname__)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def refuse_seen(self, prompts: Iterable[Sequence[Message]]) -> None:  # noqa: B027 - a hook that only models need
        """Check that none of the prompts was in the reward's own training data, as far as that is known.

        Raises:
            InputError: some were; the message says how many and what to do.
        """

    def about(self) -> dict[str, Any]:
        """Return what a reader of the number must know: name, path, centre and scale."""
        return {"name": type(getattr(self, "_given", self)).__name__}


class _AdoptedReward(Adopted, Reward):
    """A user's reward that does not inherit from `Reward`."""

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return one number an item."""
        return list(self._given.score(items))


def as_reward(given: Any) -> Reward:
    """Return a user's reward as a `Reward`; what its class does not define has the default.

    Raises:
        InputError: it has no method `score`.
    """
    if isinstance(given, Reward):
        return given
    if not callable(getattr(given, "score", None)):
        raise InputError(
            f"reward._target_: {type(given).__module__}.{type(given).__qualname__} has no method score(items), which "
            "returns one number for each prompt with its completion"
        )
    return _AdoptedReward(given)


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
