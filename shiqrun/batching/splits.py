"""A data set is split into training, validation and test prompts, by its own files or by a hash of prompt ids."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from shiqrun.batching.encode import TrainOn
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example

Split = Literal["train", "val", "test", "selection"]
"""What a data set is split into:

train: is trained on.
val: is validated on.
test: reports, once; the data set's own, or a share of its prompts, or without both half of those of "val".
selection: those of "val" that are not of "test": they choose checkpoints and settings where a test reports.
"""
SPLITS: tuple[Split, Split] = ("train", "val")
"""The splits that a run reads as trajectories; of the others it reads prompts alone."""
TEST: Split = "test"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """A `DataSettings` holds what every `conf/data/*.yaml` sets beside its own keys: limits, split and filters.

    Attributes:
        limit: the most examples to read, None for all: the first of the file, of which `val_fraction` and
            `test_fraction` are held out. A data set with splits of its own is read up to the limit in each.
        max_length: the most tokens of a trajectory; longer ones are dropped. None: the model's context.
        val_fraction: share of the prompts held out where the data set has no validation split.
        test_fraction: share of the prompts held out beside them where the data set has no test split; with 0 half of
            the validation prompts are those of the test.
        completions: "all", or "best": of each example only the completion with the largest return (for `algo=sft`).
        train_on: "assistant", or "response" (every token after the prompt; for `algo=sft`).
        distinct: of completions that are equal, token by token and with their prompt, only the first is kept.

    Raises:
        InputError: both shares leave nothing to train on.
    """

    limit: Annotated[int, Gt(0)] | None
    max_length: Annotated[int, Gt(1)] | None
    val_fraction: Annotated[float, Ge(0), Lt(1)]
    completions: Literal["all", "best"]
    train_on: TrainOn
    test_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    distinct: bool = False

    def __post_init__(self) -> None:
        if self.test_fraction and self.val_fraction + self.test_fraction >= 1:
            raise InputError(
                f"data.val_fraction={self.val_fraction:g} and data.test_fraction={self.test_fraction:g} leave no "
                "prompt to train on; give shares whose sum is below 1"
            )


def is_held_out(prompt_id: str, fraction: float) -> bool:
    """Return whether a prompt is held out for validation, by a hash of its id alone: it never changes sides."""
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def has_test(source: Source, settings: DataSettings) -> bool:
    """Return whether the test split has prompts of its own, so that none of "val" belongs to it."""
    return TEST in source.splits or settings.test_fraction > 0


def is_of(split: Split, prompt_id: str, source: Source, settings: DataSettings) -> bool:
    """Return whether a prompt of "val" belongs to a split that is made of it; another hash of its id halves them."""
    if split == "val" or has_test(source, settings):
        return True
    return is_held_out(f"test:{prompt_id}", 0.5) == (split == TEST)


def side_of(prompt_id: str, source: Source, settings: DataSettings) -> Split:
    """Return the split of a prompt of the source's "train", from which splits that it lacks are cut.

    Validation has the smallest hashes and test the next ones, so that holding out a test split changes no prompt of
    the validation split. All rows of a `prompt_id` are on one side.
    """
    val = 0.0 if "val" in source.splits else settings.val_fraction
    if is_held_out(prompt_id, val):
        return "val"
    test = 0.0 if TEST in source.splits else settings.test_fraction
    return TEST if test and is_held_out(prompt_id, val + test) else "train"


def examples_of(source: Source, split: Split, settings: DataSettings) -> Iterator[Example]:
    """Yield the examples of a split among the first `limit`; one that the source lacks is a share of its prompts."""
    side, own = where(split, source, settings)
    for example in islice(source.load(own), settings.limit):
        if own == "train" and side_of(example.prompt_id, source, settings) != side:
            continue
        if side != "val" or is_of(split, example.prompt_id, source, settings):
            yield example if settings.completions == "all" else _best(example)


def where(split: Split, source: Source, settings: DataSettings) -> tuple[Split, str]:
    """Return the side on which the prompts of a split are, and the split of the source that holds them."""
    if split in source.splits:
        return split, split
    side = "val" if split == "selection" or (split == TEST and not has_test(source, settings)) else split
    return side, side if side in source.splits else "train"


def _best(example: Example) -> Example:
    """Return the example with its best completion alone, the first of those with the largest return.

    One without completions, a problem that nobody solved, stays as it is.
    """
    if not example.completions:
        return example
    if example.rewards is None:
        raise InputError(
            f"{example.source}: no rewards to choose by; data.completions=best needs them (for pairs data.pair_rewards)"
        )
    totals = [sum(r) if isinstance(r, Sequence) else r for r in example.rewards]
    best = totals.index(max(totals))
    return example.pick([best])


def both_splits(source: Source, settings: DataSettings, dropped: Counter[str]) -> Iterator[tuple[Split, Example]]:
    """Yield the examples of both splits with the name of their split, in file order where both come from one file.

    Prompts of the test split are left out. Examples that the loader leaves out are counted in `dropped`.
    """
    if "val" in source.splits:
        for own in SPLITS:
            yield from ((own, example) for example in examples_of(source, own, settings))
            dropped.update(source.dropped)
        return
    for example in islice(source.load("train"), settings.limit):
        side = side_of(example.prompt_id, source, settings)
        if side != TEST:
            yield side, example if settings.completions == "all" else _best(example)
    dropped.update(source.dropped)
