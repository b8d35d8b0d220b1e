"""An `EncodedData` is a data set in tokens, as `load` returns it."""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from shiqrun.batching.prompt_identity import prompt_key
from shiqrun.batching.rows import Rows


@dataclass(frozen=True)
class EncodedData:
    """An `EncodedData` holds both splits of a data set as token ids, and how many rows were dropped, by reason.

    Attributes:
        train: rows of the training split.
        val: rows of the validation split.
        dropped: number of completions left out, by reason.
        fingerprint: hash of both splits.
        prompts: `prompt_name` of every prompt of the training split, by its messages whatever the rows' `prompt_id`
            says, also of rows that were dropped: every method and reward model of one data set knows the same.
    """

    train: Rows
    val: Rows
    dropped: Counter[str]
    fingerprint: str
    prompts: Set[str] = frozenset()

    def prompt_keys(self) -> frozenset[str]:
        """Return the `prompt_key` of every prompt that is trained on."""
        first = np.unique(self.train.numbers.numbers("family"), return_index=True)[1]
        return frozenset(prompt_key(self.train.trajectories[int(row)]) for row in first)
