"""`Source` is the base class of data sets: it yields `Example`s by split, and says how a policy is evaluated.

Only `load` must be written: `Source` has a default for everything else, and `as_source` lends these defaults to a class
that does not inherit from it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from shiqrun.data.drops import Drops
from shiqrun.environments.environment import Environment
from shiqrun.errors import InputError
from shiqrun.types import Example
from shiqrun.util.adopt import Adopted


@dataclass(frozen=True)
class DrawnEpisode:
    """A `DrawnEpisode` holds one sampled episode as text for `samples.jsonl` and as a drawing for the terminal.

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
    """An `ExactEvaluation` solves a problem exactly, and evaluates a policy against its optimum without sampling.

    One with an attribute `problems` has there the metrics of each problem in the last `evaluate`, beside `prompt_id`.
    """

    def set_reference(self, model: Any) -> None:
        """Solve the problem under this reference model; must be called before `evaluate`."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return the exact metrics of a policy (regret, KL, ...), by name without a prefix."""
        ...

    def draw_episodes(self, model: Any, number: int, seed: int) -> Sequence[DrawnEpisode]:
        """Sample `number` episodes of a policy and draw them for people to look at."""
        ...


class Source(ABC):
    """A `Source` is a data set; the keyword parameters of its constructor are the keys of its `conf/data/*.yaml`.

    Attributes:
        splits: its own splits, "train" and perhaps "val" and "test"; without them, shares of the prompts of "train" are
            held out for validation (`data.val_fraction`) and perhaps for a test (`data.test_fraction`).
        dropped: rows that `load` left out, by reason; filled while `load` is read.
        vocabulary: all words of a data set written in a closed list of words, of which `model=tiny` makes one token
            each; None for ordinary text.
        chat_template: Jinja template that goes with the vocabulary; None for the model's own.
        parts: the data sets of a mixture by name, each with its settings and weight; empty elsewhere.
        paths: the user's file or directory of each split, where the data set reads one.
        tools: whether the chat template gets the tool schemas of prompts (`data.tools`).
        right_and_wrong: rewards of a right and of a wrong completion, reward units, where completions are one or the
            other; None elsewhere.
        evaluated_exactly: whether `exact` knows the optimum; then no completions are sampled to evaluate a policy.
    """

    splits: tuple[str, ...] = ("train",)
    vocabulary: list[str] | None = None
    chat_template: str | None = None
    parts: Mapping[str, Any] = {}
    paths: Mapping[str, str] = {}
    tools: bool = True
    right_and_wrong: tuple[float, float] | None = None
    evaluated_exactly: bool = False

    @cached_property
    def dropped(self) -> Counter[str]:
        """Return the number of rows that `load` left out, by reason; `drop` adds one and remembers the first."""
        return Drops()

    @abstractmethod
    def load(self, split: str) -> Iterable[Example]:
        """Yield the examples of a split, in file order.

        Raises:
            InputError: unreadable file, broken row or missing column; the message names file, line and column.
        """

    def files(self) -> list[Path] | None:
        """Return the files whose contents, with the public attributes of this data set, decide what `load` yields.

        None: unknown, or there is more to it; then encoded rows are not kept between runs.
        """
        return None

    def use_template(self, tokenizer: Any, *, own: bool, specials: Sequence[str]) -> None:  # noqa: B027 - as below
        """Learn the chat template that will render prompts, before anything is loaded for it.

        Args:
            tokenizer: with the template.
            own: whether it is the model's own template, and not the plain one of models without.
            specials: texts of the special tokens.

        Raises:
            InputError: the data set's settings ask for something that the template cannot do.
        """

    def environment(self) -> Environment | None:
        """Return the environment in which a policy plays episodes; None where it completes prompts instead."""
        return None

    def tasks(self, split: str) -> Iterable[Example]:
        """Yield the examples of a split from which the environment begins episodes."""
        return self.load(split)

    def answers_back(self) -> bool:
        """Return whether episodes have several turns, so that a single completion of a prompt earns no reward."""
        return self.environment() is not None

    def exact(self, tokenizer: Any, *, split: str, beta: float) -> ExactEvaluation | None:
        """Return the exact evaluation on a split at KL temperature beta (reward units per nat), or None where unknown.

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
        """Return the entries of `eval.json` that describe the evaluated data, beside the name of the data set."""
        return {}


class _AdoptedSource(Adopted, Source):
    """An `_AdoptedSource` wraps a user's data set whose class does not inherit from `Source`."""

    def load(self, split: str) -> Iterable[Example]:
        """Yield the examples of a split, as the user's class does."""
        return self._given.load(split)


def as_source(given: Any) -> Source:
    """Return a user's data set as a `Source`, with the defaults of `Source` for what its class does not define.

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
