"""The names of the training prompts are kept as one sorted array, so that a million of them take 16 MB."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import numpy as np

from shiqrun.batching.selection import SEEN
from shiqrun.data.chats import prompt_name
from shiqrun.data.drops import drop
from shiqrun.types import Example

BLOCK = 4096
"""Names that are kept as objects, before they become an array."""


class PromptNames(Set[str]):
    """`PromptNames` is a set of the names of prompts that takes 16 bytes a name.

    Args:
        names: `[n]` of type S (bytes), sorted, each once.
    """

    def __init__(self, names: np.ndarray) -> None:
        self.names = names

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> Any:
        return frozenset(it)

    def __contains__(self, name: object) -> bool:
        """Return whether the set has a name."""
        wanted = str(name).encode()
        at = int(np.searchsorted(self.names, wanted)) if len(self.names) else 0
        return at < len(self.names) and bool(self.names[at] == wanted)

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self.names)

    def __len__(self) -> int:
        return len(self.names)


class NameList:
    """A `NameList` collects the names of prompts as they are read."""

    def __init__(self) -> None:
        self._new: list[str] = []
        self._blocks: list[np.ndarray] = []

    def append(self, name: str) -> None:
        """Add a name, which may be there already."""
        self._new.append(name)
        if len(self._new) == BLOCK:
            self._pack()

    def _pack(self) -> None:
        self._blocks.append(np.unique(np.array([name.encode() for name in self._new], "S")))
        self._new = []

    def known(self) -> PromptNames:
        """Return the set of all names so far."""
        self._pack()
        return PromptNames(np.unique(np.concatenate(self._blocks)))


def joined_names(sets: Sequence[Set[str]]) -> Set[str]:
    """Return the names of several data sets as one set."""
    if not all(isinstance(names, PromptNames) for names in sets):
        return frozenset().union(*sets)
    return PromptNames(np.unique(np.concatenate([names.names for names in sets if isinstance(names, PromptNames)])))


def drop_trained_prompts(examples: Iterable[Example], trained: Set[str], dropped: Counter[str]) -> Iterator[Example]:
    """Yield the validation examples whose prompt is not trained on; count the completions of the others as dropped."""
    for example in examples:
        if prompt_name(example.messages) in trained:
            drop(dropped, SEEN, example.source, example.messages[-1:], len(example.completions))
        else:
            yield example


def record_names(examples: Iterable[Example], names: list[str] | NameList) -> Iterator[Example]:
    """Yield the examples, and append the name of each one's prompt to `names`."""
    for example in examples:
        names.append(prompt_name(example.messages))
        yield example
