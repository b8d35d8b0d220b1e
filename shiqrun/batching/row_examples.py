"""`examples_of_rows` reads again the examples that rows were encoded from."""

from collections.abc import Iterable, Sequence, Set
from itertools import islice

from shiqrun.batching.logged_data import DataSettings, Split, examples_of, numbered_examples
from shiqrun.batching.rows import Rows
from shiqrun.data.chats import prompt_name
from shiqrun.data.source import Source
from shiqrun.types import Example


def examples_of_rows(
    rows: Rows, picked: Sequence[int], source: Source, settings: DataSettings, split: Split, trained: Set[str]
) -> list[Example]:
    """Return the example of each picked row.

    Args:
        rows: of the split.
        picked: numbers of rows.
        source: the data set, read again as far as it takes.
        settings: how it is read.
        split: of the rows.
        trained: names of its training prompts.
    """
    names = [None if rows.parts is None else rows.parts.name(row) for row in picked]
    numbers = [rows.trajectories[row].example for row in picked]
    found: dict[tuple[str | None, int], Example] = {}
    for name in dict.fromkeys(names):
        wanted = {number for own, number in zip(names, numbers, strict=True) if own == name}
        if name is None:
            read: Iterable[Example] = numbered_examples(source, settings, split, trained)
        else:
            part = source.parts[name]
            known = examples_of(part.source, "train", part.settings) if split == "val" else ()
            own_prompts = {prompt_name(example.messages) for example in known}
            read = numbered_examples(part.source, part.settings, split, own_prompts)
        for number, example in enumerate(islice(read, max(wanted) + 1)):
            if number in wanted:
                found[name, number] = example
    return [found[key] for key in zip(names, numbers, strict=True)]
