"""Rollouts may be mixed with trajectories of another file, or with the data set's rows that have value targets."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.logged_data import DataSettings, examples_of, load
from shiqrun.batching.prompt_identity import prompt_key, rendered_prompt_keys
from shiqrun.batching.rows import Rows
from shiqrun.data.chats import prompt_name
from shiqrun.data.jsonl import Jsonl
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example

log = logging.getLogger("shiqrun")
HELD_OUT = "rollout.path, but the prompt is one of validation"


class WithoutPrompts(Source):
    """`WithoutPrompts` wraps a data set and leaves some prompts out, for training alone.

    Args:
        source: the data set.
        names: `prompt_name` of the prompts that are left out; counted by completion.
    """

    def __init__(self, source: Source, names: frozenset[str]) -> None:
        self.source, self.names = source, names

    def load(self, split: str) -> Iterator[Example]:
        """Yield the examples whose prompt is not left out; see `Source`."""
        self.dropped.clear()
        for example in self.source.load(split):
            if prompt_name(example.messages) in self.names:
                self.dropped[HELD_OUT] += len(example.completions)
            else:
                yield example
        self.dropped.update(self.source.dropped)


def load_further_rows(
    path: str,
    source: Source,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    compared_by: str | None,
    together: bool,
) -> Rows:
    """Return the trajectories of the file that rollouts are mixed with, without prompts of the validation split.

    Args:
        path: setting `rollout.path`, in the format of `data=jsonl`.
        source: the run's data set, whose validation prompts are left out, and which says whether tools are read.
        data: how that data set is read; all of the file is training data.
        tokenizer: of the policy.
        context: tokens that the model can read.
        compared_by: as for `load`.
        together: as for `load`.

    Raises:
        InputError: the file cannot be read, or no row is left.
    """
    by_text = {prompt_name(example.messages): example.messages for example in examples_of(source, "val", data)}
    held_out, keys = frozenset(by_text), frozenset(rendered_prompt_keys(by_text.values(), tokenizer))
    encoded = load(
        WithoutPrompts(Jsonl(path=path, val_path=None, pair_rewards=None, tools=source.tools), held_out),
        tokenizer,
        replace(data, val_fraction=0.0, limit=None),
        context=context,
        compared_by=compared_by,
        together=together,
        source_name="further",
    )
    rows = encoded.train
    apart = [i for i, t in enumerate(rows.trajectories) if prompt_key(t) not in keys]
    if len(apart) < len(rows):
        encoded.dropped[HELD_OUT] += len(rows) - len(apart)
        if not apart:
            raise InputError(f"rollout.path={path}: every prompt is one of validation; give other rows")
        rows = rows.select(apart)
    if encoded.dropped:
        log.warning("%s: left out are %s", path, ", ".join(f"{n} {why}" for why, n in encoded.dropped.items()))
    return rows


def annotated_rows(rows: Rows) -> Rows:
    """Return the rows that have a value target at some action, under the source name "annotated"."""
    targets = rows.columns["value_target"]
    return rows.select([i for i, target in enumerate(targets) if not np.isnan(target).all()]).with_source("annotated")
