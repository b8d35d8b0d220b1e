"""A data set hands over `Example`s, a split at a time, and says how a policy is evaluated on it.

Only `load` must be written: `Source` has a default for everything else, and `as_source` lends these defaults to a class
that does not inherit from it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from shiqrun.environments.environment import Environment
from shiqrun.errors import InputError
from shiqrun.types import Example
from shiqrun.util.adopt import Adopted


@dataclass(frozen=True)
class DrawnEpisode:
    """A sampled episode of a problem that is evaluated exactly, as text for `samples.jsonl` and as a drawing.

    Attributes:
        prompt: the prompt's text.
        completion: what the policy said, turns separated by spaces.
        reward: return of the episode, reward units.
        drawing: rich markup for the terminal.
    """

    prompt: str
    completion: str
    reward: float
    drawing: str


class ExactEvaluation(Protocol):
    """The exact optimum of a problem, against which a policy is evaluated without sampling."""

    def set_reference(self, model: Any) -> None:
        """Solve the problem under this reference; comes before `evaluate`."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return the policy's exact metrics, by name without a prefix."""
        ...

    def draw_episodes(self, model: Any, number: int, seed: int) -> Sequence[DrawnEpisode]:
        """Sample episodes of the policy for people to look at."""
        ...


class Source(ABC):
    """A data set. The keyword-only parameters of its constructor are the valid keys of its `conf/data/*.yaml`.

    Attributes:
        splits: its own splits, ("train",) or ("train", "val"); without "val", a share of the prompts of "train" is
            held out for validation (`data.val_fraction`).
        dropped: rows that `load` left out, by reason; filled while `load` is read.
        vocabulary: all words of a data set written in a closed list of words, of which `model=tiny` makes one token
            each; None for ordinary text.
        chat_template: Jinja template that goes with the vocabulary; None for the model's own.
        paths: the user's file or directory of each split, where the data set reads one.
        evaluated_exactly: whether `exact` knows the optimum; then no completions are sampled to evaluate a policy.
    """

    splits: tuple[str, ...] = ("train",)
    vocabulary: list[str] | None = None
    chat_template: str | None = None
    paths: Mapping[str, str] = {}
    evaluated_exactly: bool = False

    @cached_property
    def dropped(self) -> Counter[str]:
        """Rows that `load` left out, by reason."""
        return Counter()

    @abstractmethod
    def load(self, split: str) -> Iterable[Example]:
        """Yield the examples of a split, in file order.

        Raises:
            InputError: unreadable file, broken row or missing column; the message names file, line and column.
        """

    def environment(self) -> Environment | None:
        """Return the environment in which a policy plays episodes; None where it completes prompts instead."""
        return None

    def tasks(self, split: str) -> Iterable[Example]:
        """Yield the examples of a split of which the environment begins episodes."""
        return self.load(split)

    def answers_back(self) -> bool:
        """Whether an episode has several turns, so that one completion of a prompt does not earn its reward."""
        return self.environment() is not None

    def exact(self, tokenizer: Any, *, split: str, beta: float) -> ExactEvaluation | None:
        """Return the exact optimum on a split at a KL temperature (reward units per nat), where it is known.

        Raises:
            InputError: the tokenizer does not fit the problem.
        """
        return None

    def expect_training(self) -> None:  # noqa: B027 - a hook that few data sets need
        """Check that a run may be evaluated on this data set while it trains.

        Raises:
            InputError: the settings are for `shiqrun eval` alone.
        """

    def about(self) -> dict[str, Any]:
        """Return what `eval.json` says of the data set beside its name."""
        return {}


class _AdoptedSource(Adopted, Source):
    """A user's data set that does not inherit from `Source`."""

    def load(self, split: str) -> Iterable[Example]:
        """Yield the examples of a split."""
        return self._given.load(split)


def as_source(given: Any) -> Source:
    """Return a user's data set as a `Source`; what its class does not define has the default.

    Raises:
        InputError: it has no method `load`.
    """
    if isinstance(given, Source):
        return given
    if not callable(getattr(given, "load", None)):
        raise InputError(
            f"data._target_: {type(given).__module__}.{type(given).__qualname__} has no method load(split), which "
            "yields the examples of a split"
        )
    return _AdoptedSource(given)
