"""`Reward` is the contract of rewards: a reward gives one number for a prompt with its completion."""

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
"""Shows the progress of an iteration, whose name is the second argument."""


@dataclass(frozen=True)
class Answered:
    """An answered prompt is a prompt with one completion, which a reward scores.

    Attributes:
        prompt: the chat messages before the completion.
        completion: the messages that answer the prompt; the last one is the assistant's.
        answer: what a verifier needs (`Example.answer`).
        source: where the prompt came from, for error messages.
    """

    prompt: Sequence[Message]
    completion: Sequence[Message]
    answer: Any = None
    source: str = ""

    @property
    def text(self) -> str:
        """Return the content of the assistant's last message."""
        return str(self.completion[-1]["content"]) if self.completion else ""


class Reward(ABC):
    """A reward scores completions; the keyword-only parameters of its constructor are the keys of its YAML.

    Only `score` must be written. `as_reward` lends the other methods to a class that does not inherit from this one.

    Attributes:
        right: what a right completion gets, where completions are right or wrong, so that pass@k is defined; None
            elsewhere.
        repeatable: whether the same items get the same rewards, to the last bit, in another process, so that runs may
            share them: nothing is drawn, timed or asked of a server.
    """

    right: float | None = None
    repeatable: bool = False

    def to(self, device: torch.device) -> None:  # noqa: B027 - a hook that only models need
        """Put the reward's model, if it has one, on this device from the next score on."""

    @abstractmethod
    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return the reward of each completion, after centring and scaling; it depends on prompt and completion alone.

        Raises:
            InputError: an item cannot be scored, or its score is not finite; the message names its source.
        """

    def fingerprint(self) -> str:
        """Return a text by which equal rewards are recognised; rewards with different scores must differ in it.

        The default is a hash of the class's source and of the attributes that JSON can represent. It does not read
        functions that the class calls.
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
        """Return what a reader of the rewards must know: name, path, centre and scale."""
        return {"name": type(getattr(self, "_given", self)).__name__}


class _AdoptedReward(Adopted, Reward):
    """An adopted reward wraps a user's reward that does not inherit from `Reward`."""

    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return the reward of each completion."""
        return list(self._given.score(items))


def as_reward(given: Any) -> Reward:
    """Return a user's reward as a `Reward`; methods that its class does not define have the defaults.

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
    """A bounded reward reads tokens, and at most those of its context."""

    def context(self) -> int | None:
        """Return the largest number of tokens that the reward can read, None if unknown."""

    def lengths(self, items: Sequence[Answered]) -> list[int]:
        """Return the number of tokens of each prompt with its completion."""
        ...


@runtime_checkable
class Judging(Protocol):
    """A judging reward gives each item a verdict, a word that decides the reward."""

    def verdicts(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[str]:
        """Return one verdict for each completion.

        Raises:
            InputError: as `score`.
        """
        ...

    def worth(self, word: str) -> float:
        """Return the reward of a verdict."""
        ...
