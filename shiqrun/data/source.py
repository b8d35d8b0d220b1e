"""What a data set is to the rest: something that hands over `Example`s, a split at a time."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from shiqrun.types import Example


class Source(Protocol):
    """A data set. Its keyword-only constructor parameters are the valid keys of its `conf/data/*.yaml`.

    Attributes:
        splits: the splits it has of its own, ("train",) or ("train", "val"); without "val", a share of the prompts
            of "train" is held out by `data.module`.
        dropped: rows the loader left out, by reason; filled while `load` is read.
    """

    splits: tuple[str, ...]
    dropped: Counter[str]

    def load(self, split: str) -> Iterable[Example]:
        """The examples of a split, in file order.

        Raises:
            InputError: unreadable file, broken row or missing column; the message names file, line and column.
        """
        ...


@runtime_checkable
class ClosedVocabulary(Protocol):
    """A data set written in a fixed list of words: `model=tiny` then makes one token of each."""

    vocabulary: list[str]
    chat_template: str
