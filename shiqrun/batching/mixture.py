"""`data=mixture` trains on several data sets at once, each with its own keys, validation split and weight."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt

from shiqrun.batching.logged_data import DataSettings, Split, examples_of
from shiqrun.data.drops import Drops
from shiqrun.data.part_names import expect_part_name, id_in_mixture, naming
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """A `PartSettings` holds what a part of a mixture sets beside the keys of its data set; None: as the mixture.

    Attributes:
        weight: passes over the part in an epoch.
        limit, max_length, val_fraction, test_fraction, completions, distinct: see `DataSettings`.
    """

    weight: Annotated[float, Gt(0), Le(1000)] = 1.0
    limit: Annotated[int, Gt(0)] | None = None
    max_length: Annotated[int, Gt(1)] | None = None
    val_fraction: Annotated[float, Ge(0), Lt(1)] | None = None
    test_fraction: Annotated[float, Ge(0), Lt(1)] | None = None
    completions: Literal["all", "best"] | None = None
    distinct: bool | None = None

    def of_part(self, mixture: DataSettings) -> DataSettings:
        """Return the settings of the part, in a mixture with the given ones."""
        own = {name: value for name, value in vars(self).items() if name != "weight" and value is not None}
        return replace(mixture, **own)


@dataclass(frozen=True)
class Part:
    """A `Part` is a data set of a mixture.

    Attributes:
        source: the data set.
        settings: how it is read.
        weight: passes over it in an epoch.
    """

    keys: ClassVar[type] = PartSettings

    source: Source
    settings: DataSettings
    weight: float


class Mixture(Source):
    """A `Mixture` data set yields the examples of several data sets, one data set after another.

    Args:
        parts: the data sets by name.

    Raises:
        InputError: there is none, a name cannot be used, or a data set cannot be mixed with others.
    """

    splits: tuple[str, ...] = get_args(Split)  # each part makes those that it lacks

    def __init__(self, *, parts: dict[str, Part]) -> None:
        if not parts:
            raise InputError(
                "data.parts: no data set to mix; name each with its weight, as in "
                "data.parts={chat:{data:jsonl,path:a.jsonl,weight:2},pairs:{data:hh,path:b.jsonl}}"
            )
        for name, part in parts.items():
            _expect_mixable(expect_part_name(name), part.source)
        self.parts = parts
        sources = [part.source for part in parts.values()]
        self.tools = all(source.tools for source in sources)
        levels = {source.right_and_wrong for source in sources}
        self.right_and_wrong = levels.pop() if len(levels) == 1 else None

    def load(self, split: str) -> Iterator[Example]:
        """Yield the examples of a split, part by part; each part's settings bound, split and choose its own."""
        self.dropped.clear()
        own: Split = next(name for name in get_args(Split) if name == split)
        for name, part in self.parts.items():
            with naming(name):
                for example in examples_of(part.source, own, part.settings):
                    yield replace(example, part=name, prompt_id=id_in_mixture(name, example.prompt_id))
            if split in part.source.splits:  # a held-out split reads the same rows again
                self.dropped.update(Drops(part.source.dropped).of_part(name))

    def expect_training(self) -> None:
        """Check of every part that a run may be evaluated on it while it trains."""
        for name, part in self.parts.items():
            with naming(name):
                part.source.expect_training()


def _expect_mixable(name: str, source: Source) -> None:
    """Check that a data set can be a part.

    Raises:
        InputError: it is a mixture, is evaluated otherwise than by completions, or has words of its own.
    """
    if source.parts:
        raise InputError(f"data.parts.{name}: a mixture cannot hold a mixture; give its parts beside the others")
    if source.evaluated_exactly or source.vocabulary is not None:
        raise InputError(f"data.parts.{name}: this data set is written in a closed list of words; train on it alone")
    if source.environment() is not None:
        raise InputError(
            f"data.parts.{name}: this data set is evaluated by episodes, a mixture by completions; train on it alone, "
            "or write its dialogues as rows of data=jsonl"
        )
