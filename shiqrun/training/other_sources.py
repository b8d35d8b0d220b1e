"""The rows of a run's rollouts that are neither sampled nor of its data set: another file, or those with targets."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.logged_data import examples_of, load
from shiqrun.batching.rows import Rows
from shiqrun.data.chats import prompt_name
from shiqrun.data.jsonl import Jsonl
from shiqrun.data.source import Source
from shiqrun.losses.requirements import compares_completions
from shiqrun.types import Example

if TYPE_CHECKING:
    from shiqrun.training.plan import Plan

log = logging.getLogger("shiqrun")
HELD_OUT = "rollout.path, but the prompt is one of validation"


class Without(Source):
    """A data set without some prompts, for training alone.

    Args:
        source: the data set.
        names: `prompt_name` of the prompts that are left out; counted by completion.
    """

    def __init__(self, source: Source, names: frozenset[str]) -> None:
        self.source, self.names = source, names

    def load(self, split: str) -> Iterator[Example]:
        """See `Source`."""
        self.dropped.clear()
        for example in self.source.load(split):
            if prompt_name(example.messages) in self.names:
                self.dropped[HELD_OUT] += len(example.completions)
            else:
                yield example
        self.dropped.update(self.source.dropped)


def further_rows(plan: "Plan", tokenizer: PreTrainedTokenizerBase, logged: Rows) -> Rows | None:
    """The file that rollouts are mixed with, read and encoded as the data set is, without the prompts of validation.

    Raises:
        InputError: the file cannot be read, or no row is left.
    """
    if plan.rollout is None or plan.rollout.path is None:
        return None
    held_out = frozenset(prompt_name(example.messages) for example in examples_of(plan.source, "val", plan.data))
    source = Without(Jsonl(path=plan.rollout.path, val_path=None, pair_rewards=None), held_out)
    data = replace(plan.data, val_fraction=0.0, limit=None)
    compared_by = plan.names["algo"] if compares_completions(plan.loss) else None
    found = load(
        source, tokenizer, data, context=plan.choice.context(), compared_by=compared_by, together=logged.together
    )
    if found.dropped:
        log.warning(
            "%s: left out are %s", plan.rollout.path, ", ".join(f"{n} {why}" for why, n in found.dropped.items())
        )
    rows = found.train
    rows.packed, rows.device, rows.anchor = logged.packed, logged.device, logged.anchor
    return rows


def annotated_rows(rows: Rows) -> Rows:
    """Those of a data set that have a target at some action."""
    assert rows.value_target is not None
    chosen = [i for i, target in enumerate(rows.value_target) if not np.isnan(target).all()]
    found = Rows([rows.trajectories[i] for i in chosen], rows.pad, together=rows.together, compared=rows.compared)
    found.packed, found.device, found.anchor = rows.packed, rows.device, rows.anchor
    found.offset, found.value_target = rows.offset[chosen], [rows.value_target[i] for i in chosen]
    found.prompt_value = None if rows.prompt_value is None else rows.prompt_value[chosen]
    return found
