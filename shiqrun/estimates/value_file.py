"""Rewards of the reference's completions by prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shiqrun.errors import InputError
from shiqrun.estimates.jsonl_cache import CacheKind, JsonlCache, expect_made_with, read_rows

KIND = CacheKind("values", "prompt values", column="rewards", key="asked")


class ValueFile(JsonlCache):
    """What is kept of prompts that were valued.

    A row has `asked`, which names the prompt and whatever its reward depends on, and the columns of `data=jsonl`.

    Args:
        path: of the file; it need not be there.
        made_with: what equal values need: fingerprints of reference and reward, and how was sampled.

    Attributes:
        rewards: `[K]` float64 by what was asked.

    Raises:
        InputError: the file was made with something else, or is no such file; the message names what differs.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        self.rewards: dict[str, np.ndarray] = {}
        super().__init__(path, KIND, made_with)

    def _remember(self, row: Mapping[str, Any], start: int) -> None:
        super()._remember(row, start)
        self.rewards[row["asked"]] = np.array(row["rewards"], np.float64)


class Valued(NamedTuple):
    """What is known of a prompt: rewards `[K]` float64 of the reference's completions, and the `tokens_key` of it."""

    rewards: np.ndarray
    tokens: str


def read_values(path: Path, wanted: Mapping[str, Any]) -> dict[str, Valued]:
    """What is known of each prompt id; the file is not changed.

    Args:
        path: `values.jsonl` of `shiqrun values`.
        wanted: what its header must say.

    Raises:
        InputError: as `read_rows`; or it was made with something else, or has rewards that are no finite numbers.
    """
    lines = read_rows(path, KIND)
    expect_made_with(path, next(lines).row, wanted, KIND)
    found = {}
    for number, row, _, _ in lines:
        try:
            rewards = np.array(row["rewards"], np.float64)
        except (TypeError, ValueError):
            rewards = np.zeros(0)
        named = isinstance(row.get("prompt_id"), str) and isinstance(row.get("prompt_tokens"), str)
        if not named or rewards.ndim != 1 or not rewards.size or not np.isfinite(rewards).all():
            raise InputError(
                f"{path}:{number}: expected a prompt_id, prompt_tokens and a list of rewards; {KIND.advice}"
            )
        found[row["prompt_id"]] = Valued(rewards, row["prompt_tokens"])
    return found
