"""`COLUMNS` lists the numbers that trajectories may carry beside their tokens, and how each becomes a tensor.

A *column* holds one entry per row: a number of the trajectory, one number per action, or the reference's scores. Its
name is the field of `shiqrun.types.Trajectories` that it fills. To give the losses a new number per row, add the field
there and one line to `COLUMNS`; selecting, concatenating and collating rows then carry it along.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shiqrun.types import ActionScores

Scores = Sequence[tuple[np.ndarray, ...]]
"""Of every row, for its A actions: logits `[A]`, log-partitions `[A]` and, with an anchor, logits `[A, K]` of the
anchor's tokens; float32, nats."""

Values = np.ndarray | Sequence[Any]
"""The entries of a column: an array `[rows]`, or one entry per row."""


def pad(arrays: Sequence[np.ndarray], padding: float = 0.0) -> Tensor:
    """Stack the arrays `[A, ...]` of B rows into one tensor `[B, A, ...]`, padded on the right."""
    first = arrays[0]
    padded = np.full((len(arrays), max(map(len, arrays)), *first.shape[1:]), padding, first.dtype)
    for row, array in enumerate(arrays):
        padded[row, : len(array)] = array
    return torch.from_numpy(padded)


def collate_row_numbers(values: np.ndarray, picked: Sequence[int]) -> Tensor:
    """Return a tensor of one number per picked row, `[B]`."""
    return torch.from_numpy(values[picked])


def collate_action_numbers(values: Sequence[np.ndarray], picked: Sequence[int], *, padding: float) -> Tensor:
    """Return a tensor of one number per action of the picked rows, `[B, A]`, filled up with `padding`."""
    return pad([values[i] for i in picked], padding)


def collate_scores(values: Scores, picked: Sequence[int]) -> ActionScores:
    """Return a model's scores of the picked rows' actions, `[B, A]` nats, filled up with zeros."""
    logit, log_partition, *further = (pad(part) for part in zip(*(values[i] for i in picked), strict=True))
    return ActionScores(logit, log_partition, further=further[0] if further else None)


COLUMNS: dict[str, Callable[[Any, Sequence[int]], Tensor | ActionScores]] = {
    "offset": collate_row_numbers,
    "prompt_value": collate_row_numbers,
    "quantile": collate_row_numbers,
    "value_target": partial(collate_action_numbers, padding=float("nan")),
    "behaviour_logp": partial(collate_action_numbers, padding=0.0),
    "acting_logp": partial(collate_action_numbers, padding=0.0),
    "reference": collate_scores,
}
"""How each column becomes the field of `Trajectories` that has its name."""


def select(values: Values, picked: Sequence[int]) -> Values:
    """Return the entries of a column at the picked rows, in their order."""
    return values[list(picked)] if isinstance(values, np.ndarray) else [values[i] for i in picked]


def concat(parts: Sequence[Values]) -> Values:
    """Return the columns of several tables as one, one after another."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [entry for part in parts for entry in part]


class AnchorTokens(NamedTuple):
    """An `AnchorTokens` draws the anchor's tokens uniformly, from seed and row number, so that none are stored.

    Attributes:
        number: K, tokens at each action's state.
        vocabulary: V, size of the model's output head; tokens lie in 0..V-1.
        seed: of the draws.
    """

    number: int
    vocabulary: int
    seed: int

    def draw(self, picked: Sequence[int], actions: np.ndarray) -> Tensor:
        """Return the anchor tokens at every action's state of the picked rows, `[B, A, K]` int64.

        Args:
            picked: row numbers.
            actions: `[rows]`, actions of every row of the split.
        """
        return pad(
            [
                np.random.default_rng([self.seed, int(i)]).integers(self.vocabulary, size=(actions[i], self.number))
                for i in picked
            ]
        )
