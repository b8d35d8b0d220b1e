"""A value file stores, for every prompt, the rewards of the completions that the reference sampled for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shiqrun.errors import InputError
from shiqrun.estimates.jsonl_cache import CacheKind, JsonlCache, expect_made_with, read_rows

KIND = CacheKind("values", "prompt values", column="rewards", key="asked")


class ValueFile(JsonlCache):
    """A `ValueFile` caches the completions of each prompt, sampled from the reference, and their rewards.

    A row has the columns of `data=jsonl`, and `asked`, the `prompt_key` of its prompt.

    Args:
        path: of the file; it need not exist.
        made_with: the header: fingerprints of reference and reward, and the sampling settings.

    Attributes:
        rewards: `[K]` float64, reward units, by `prompt_key`.

    Raises:
        InputError: the file has another header, or is no such file; the message names what differs.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        self.rewards: dict[str, np.ndarray] = {}
        super().__init__(path, KIND, made_with)

    def _remember(self, row: Mapping[str, Any], start: int) -> None:
        super()._remember(row, start)
        self.rewards[row["asked"]] = np.array(row["rewards"], np.float64)


class PromptRewards(NamedTuple):
    """A `PromptRewards` holds the rewards of one prompt's completions.

    Attributes:
        rewards: `[K]` float64, reward units, of completions that the reference sampled.
        tokens: `tokens_key` of the prompt.
    """

    rewards: np.ndarray
    tokens: str


def read_values(path: Path, wanted: Mapping[str, Any]) -> dict[str, PromptRewards]:
    """Read the rewards of each prompt id from a file of `shiqrun values`.

    Args:
        path: `values.jsonl`.
        wanted: entries that its header must have.

    Raises:
        InputError: as `read_rows`; or the header has other entries, or rewards are not finite numbers.
    """
    lines = read_rows(path, KIND)
    expect_made_with(path, next(lines).row, wanted, KIND)
    found = {}
    for line in lines:
        row = line.row
        try:
            rewards = np.array(row["rewards"], np.float64)
        except (TypeError, ValueError):
            rewards = np.zeros(0)
        named = isinstance(row.get("prompt_id"), str) and isinstance(row.get("prompt_tokens"), str)
        if not named or rewards.ndim != 1 or not rewards.size or not np.isfinite(rewards).all():
            raise InputError(
                f"{path}:{line.number}: expected a prompt_id, prompt_tokens and a list of rewards; {KIND.advice}"
            )
        found[row["prompt_id"]] = PromptRewards(rewards, row["prompt_tokens"])
    return found
