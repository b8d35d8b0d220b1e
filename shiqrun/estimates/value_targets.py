"""Values that a pivotal-token search estimated behind prefixes become targets of the Monte-Carlo term.

The term regresses the Q-function of SPO at those actions of logged trajectories (arXiv 2503.05453).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.batching.rows import Rows
from shiqrun.estimates.jsonl_cache import expect_made_with, read_rows
from shiqrun.estimates.pivotal_search import KIND
from shiqrun.losses.soft_value import soft_value
from shiqrun.rewards.reward import Reward

PrefixRewards = Mapping[tuple[str, str], Mapping[int, np.ndarray]]
"""Rewards `[K]` of rollouts behind the first t actions, by trajectory, (key of the prompt tokens, key of the actions),
and by t."""


def read_targets(path: Path, reference: str, reward: Reward | None) -> PrefixRewards:
    """Read the rewards behind prefixes from a file of `shiqrun pivotal`.

    Args:
        path: `pivotal.jsonl` of a search.
        reference: fingerprint of the run's starting weights.
        reward: of the run's evaluation; None for any.

    Raises:
        InputError: the file was made with another reference or reward.
    """
    lines = read_rows(path, KIND)
    wanted = {"reference": reference} | ({} if reward is None else {"reward": reward.fingerprint()})
    expect_made_with(path, next(lines).row, wanted, KIND)
    return prefix_rewards(line.row for line in lines)


def prefix_rewards(searched: Iterable[Mapping[str, Any]]) -> PrefixRewards:
    """Return the rewards of the first rollouts behind every searched prefix, but not behind the last action.

    The terminal loss already regresses that one; with it, the term would clone right trajectories once more.

    Args:
        searched: rows of a search's file.
    """
    return {
        (row["prompt_tokens"], tokens_key(np.array(row["input_ids"]))): {
            seen["at"]: np.array(seen["rewards"], np.float64)
            for seen in row["visited"]
            if 0 < seen["at"] < len(row["input_ids"])
        }
        for row in searched
    }


def value_targets(rows: Rows, known: PrefixRewards, beta: float) -> list[np.ndarray]:
    """Return for each row the estimated value behind each of its actions, `[A]` float32, reward units.

    An action without an estimate has NaN. A target is beta log of the mean of exp(r / beta) over the rollouts of the
    first estimate of its prefix, which, unlike later ones, was not chosen by what it says. Trajectories are matched by
    their tokens.

    Args:
        rows: the training split.
        known: rewards of rollouts behind prefixes.
        beta: reward units per nat.
    """
    targets = []
    for t in rows.trajectories:
        target = np.full(len(t.action_index), np.nan, np.float32)
        name = (tokens_key(t.input_ids[: t.action_index[0]]), tokens_key(t.input_ids[t.action_index]))
        for at, rewards in known.get(name, {}).items():
            target[at - 1] = soft_value(rewards, beta).value
        targets.append(target)
    return targets


def number_of_targets(targets: Iterable[np.ndarray]) -> int:
    """Return the number of actions that have a value target."""
    return sum(int((~np.isnan(target)).sum()) for target in targets)
