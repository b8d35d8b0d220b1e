"""`load` reads both splits of a data set and encodes their trajectories, or finds them encoded in the row store."""

import logging
import pickle
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import replace
from functools import partial
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import EncodedTrajectory, encode
from shiqrun.batching.encoded_data import EncodedData as EncodedData  # noqa: PLC0414 - who loads data has it from here
from shiqrun.batching.fingerprints import fingerprint
from shiqrun.batching.joining import join
from shiqrun.batching.prompt_identity import expect_one_prompt_an_id
from shiqrun.batching.prompt_names import NameList, PromptNames, drop_trained_prompts, record_names
from shiqrun.batching.quick_template import quick_template
from shiqrun.batching.row_file import Progress, unshown
from shiqrun.batching.row_keys import rows_key
from shiqrun.batching.row_store import RowStore
from shiqrun.batching.row_writer import RowWriter
from shiqrun.batching.rows import Rows
from shiqrun.batching.selection import (
    TrainedFamilies,
    drop_repeated,
    drop_uncompared,
    drop_undecided,
    expect_training_rows,
    family_keys,
)
from shiqrun.batching.source_template import tell_template
from shiqrun.batching.splits import SPLITS as SPLITS  # noqa: PLC0414 - as above
from shiqrun.batching.splits import DataSettings as DataSettings  # noqa: PLC0414
from shiqrun.batching.splits import Split as Split  # noqa: PLC0414
from shiqrun.batching.splits import both_splits as both_splits  # noqa: PLC0414
from shiqrun.batching.splits import examples_of as examples_of  # noqa: PLC0414
from shiqrun.batching.splits import is_held_out as is_held_out  # noqa: PLC0414
from shiqrun.batching.stored_rows import CountedTrajectories
from shiqrun.data.drops import Drops
from shiqrun.data.part_names import naming
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example
from shiqrun.util.few_collections import few_collections

log = logging.getLogger("shiqrun")
Encoder = partial[Iterator[EncodedTrajectory]]
"""`encode` with all but the examples and the counts of dropped ones."""


def load(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    *,
    context: int | None,
    compared_by: str | None = None,
    together: bool = False,
    source_name: str = "logged",
    store: RowStore | None = None,
    progress: Progress = unshown,
) -> EncodedData:
    """Return both splits of a data set, read and encoded; no prompt of the validation split is trained on.

    The data sets of a mixture are read one after another, each by its own settings, and joined.

    Args:
        source: the data set.
        tokenizer: with a chat template.
        settings: see `DataSettings`.
        context: tokens that the model can read; the default of `max_length`.
        compared_by: name of the method if it compares completions of one prompt: rows of a prompt then stay together,
            and a row that is alone with its prompt is dropped.
        together: rows of a prompt stay together for any method, so that the prompt is read once.
        source_name: `Rows.source` of the training split; that of the validation split is "val".
        store: where encoded rows are kept, of data sets that know their `files`; None: they are in memory alone.
        progress: shows how far encoding, writing and checking are.

    Raises:
        InputError: no row is left of the training split; the message counts the reasons.
    """
    read = partial(
        _load_one,
        tokenizer=tokenizer,
        context=context,
        compared_by=compared_by,
        together=together,
        source_name=source_name,
        store=store,
        progress=progress,
    )
    if not source.parts:
        return read(source, settings)
    parts = {}
    for name, part in source.parts.items():
        with naming(name):
            parts[name] = read(part.source, part.settings)
    return join(parts, [part.weight for part in source.parts.values()])


def _load_one(
    source: Source,
    settings: DataSettings,
    *,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    compared_by: str | None,
    together: bool,
    source_name: str,
    store: RowStore | None,
    progress: Progress,
) -> EncodedData:
    """Return both splits of a data set that is no mixture; see `load`."""
    tell_template(source, tokenizer)
    limit = settings.max_length or context
    if settings.max_length and context and settings.max_length > context:
        raise InputError(f"data.max_length={settings.max_length} is more than the model's context of {context} tokens")
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    encoder = partial(
        encode,
        tokenizer=tokenizer,
        max_length=limit,
        train_on=settings.train_on,
        stable=source.chat_template,
        quick=quick_template(tokenizer),
    )
    key = None if store is None else rows_key(source, tokenizer, settings, limit)
    write = partial(_write, source, settings, encoder, progress)
    stored = None
    if store is not None and key is not None:
        with few_collections():
            stored = store.open(key, write, distinct=settings.distinct, progress=progress)
    found = _read(source, settings, encoder, progress) if stored is None else stored
    grouping = partial(Rows, pad=pad, together=together or bool(compared_by), compared=bool(compared_by))
    train, val = (
        grouping(drop_uncompared(found.splits[split], found.dropped, compared_by), source=name)
        for split, name in zip(SPLITS, (source_name, "val"), strict=True)
    )
    expect_training_rows(train, val, found.dropped)
    whole = len(train) + len(val) == sum(map(len, found.splits.values()))
    known = stored.fingerprint if stored is not None and whole else fingerprint(train, val)
    return EncodedData(train, val, found.dropped, known, found.prompts)


def of_method(encoded: EncodedData, compared_by: str | None) -> EncodedData:
    """Return data that were loaded for no method in particular as `load` returns them for one.

    Args:
        encoded: of `load` without `compared_by`.
        compared_by: name of the method if it compares completions of one prompt.

    Raises:
        InputError: no row is left of the training split, or of that of a part of a mixture.
    """
    if compared_by is None:
        return encoded
    dropped, kept = Counter(encoded.dropped), []
    for rows in (encoded.train, encoded.val):
        number = np.zeros(len(rows), np.int64) if rows.parts is None else rows.parts.number
        for n in np.unique(number) if rows is encoded.train else ():
            part = rows.select(np.flatnonzero(number == n).tolist())
            expect_training_rows(drop_uncompared(part.trajectories, dropped, compared_by), (), dropped)
        left = np.flatnonzero(np.bincount(rows.group, minlength=1)[rows.group] > 1).tolist()
        kept.append(replace(rows.select(left), together=True, compared=True))
    return replace(encoded, train=kept[0], val=kept[1])


class _Read(NamedTuple):
    """A `_Read` holds what was read and encoded into memory, as `StoredData` does."""

    splits: dict[str, list[EncodedTrajectory]]
    prompts: Set[str]
    dropped: Counter[str]


def _read(source: Source, settings: DataSettings, encoder: Encoder, progress: Progress) -> _Read:
    """Return the trajectories of both splits, in memory."""
    found, names = _Read({}, set(), Drops()), list[str]()
    for split in SPLITS:
        examples = progress(examples_of(source, split, settings), f"encoding {split}")
        known = frozenset(names)
        new = (
            record_names(examples, names) if split == "train" else drop_trained_prompts(examples, known, found.dropped)
        )
        encoded = drop_undecided(encoder(new, dropped=found.dropped), found.dropped)
        if split == "val":
            encoded = TrainedFamilies(family_keys(found.splits["train"])).without(encoded, found.dropped)
        found.splits[split] = drop_repeated(encoded, found.dropped) if settings.distinct else encoded
        if split in source.splits:  # a held-out split reads the same rows again
            found.dropped.update(source.dropped)
    known = frozenset(names)
    for split in SPLITS:
        rows = CountedTrajectories(found.splits[split])
        expect_one_prompt_an_id(
            rows, partial(numbered_examples, source, settings, split, known), encoder.keywords["tokenizer"]
        )
    return found._replace(prompts=known)


def _write(
    source: Source,
    settings: DataSettings,
    encoder: Encoder,
    progress: Progress,
    writer: RowWriter,
) -> PromptNames:
    """Write the trajectories of both splits, and return the names of the training prompts.

    A file of which a share is held out is read once: the examples of that share wait in a file of their own.
    """
    names = NameList()
    with TemporaryFile(dir=writer.directory) as waiting:
        for split in SPLITS:
            if "val" in source.splits:
                given = examples_of(source, split, settings)
            else:
                given = _training_examples(source, settings, waiting) if split == "train" else _unpickled(waiting)
            examples = progress(given, f"encoding {split}")
            if split == "train":
                writer.add(split, record_names(examples, names), encoder)
            else:
                writer.add(split, drop_trained_prompts(examples, names.known(), writer.dropped), encoder)
            if split in source.splits:
                writer.dropped.update(source.dropped)
    for split in progress(SPLITS, "comparing prompts"):
        again = partial(numbered_examples, source, settings, split, names.known())
        expect_one_prompt_an_id(writer.of(split), again, encoder.keywords["tokenizer"])
    return names.known()


def numbered_examples(source: Source, settings: DataSettings, split: Split, trained: Set[str]) -> Iterator[Example]:
    """Yield the examples of a split in the order in which their trajectories number them."""
    given = examples_of(source, split, settings)
    return given if split == "train" else drop_trained_prompts(given, trained, Counter())


def _training_examples(source: Source, settings: DataSettings, waiting: IO[bytes]) -> Iterator[Example]:
    """Yield the examples of the training split, and write those of the validation split to a file."""
    for split, example in both_splits(source, settings, Counter()):
        if split == "train":
            yield example
        else:
            pickle.dump(example, waiting)


def _unpickled(waiting: IO[bytes]) -> Iterator[Example]:
    """Yield the examples that this process wrote to a file."""
    waiting.seek(0)
    with suppress(EOFError):
        while True:
            yield pickle.load(waiting)
