"""`compare_units` says whether logged rewards have the unit of the reward that scores what a policy samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from shiqrun.data.source import Source
from shiqrun.rewards.model import RewardModel
from shiqrun.rewards.reward import Reward
from shiqrun.types import Example
from shiqrun.util.summary import is_finished, read_summary

SCORED_BY = "reward/fingerprint"
"""Key of a `summary.json` with the fingerprint of the reward that scored the data beside it."""
READ = 1000
"""Number of examples from which the rewards of a data set are known."""
STEP = 0.25
"""Labels and ratings are multiples of this step, as scores of a reward model are not; reward units."""
Verdict = Literal["same", "other", "unknown"]


@dataclass(frozen=True)
class LoggedRewards:
    """Logged rewards are the returns of logged trajectories, with what is known of their origin.

    Attributes:
        origin: setting that names them, for messages.
        returns: float, reward units; NaN where a trajectory has none.
        right_and_wrong: rewards of a right and of a wrong completion; see `Source`.
        scored_by: fingerprint of the reward that scored them, where that is known.
    """

    origin: str
    returns: np.ndarray
    right_and_wrong: tuple[float, float] | None = None
    scored_by: str | None = None

    @property
    def levels(self) -> list[float]:
        """Return their different values, or those that the data set gives to right and wrong completions."""
        if self.right_and_wrong is not None:
            return sorted(self.right_and_wrong)
        known = self.returns[np.isfinite(self.returns)]
        return [float(x) for x in np.unique(known)]

    def __str__(self) -> str:
        """Return their values in words."""
        return listed(self.levels)


def of_source(name: str, source: Source, returns: np.ndarray) -> LoggedRewards:
    """Return the logged rewards of a data set, of which `returns` are read."""
    sources = [part.source for part in source.parts.values()] or [source]
    by = {scored_by(each.paths.get("train")) for each in sources}
    return LoggedRewards(f"data={name}", returns, source.right_and_wrong, by.pop() if len(by) == 1 else None)


def may_differ(one: LoggedRewards, other: LoggedRewards) -> bool:
    """Return whether the logged rewards of two data sets look like two units.

    They do not if one reward scored both, or if one takes no other values than the other. Else they do where one of
    them has labels or ratings, or other rewards scored them.
    """
    a, b = {*one.levels}, {*other.levels}
    if (one.scored_by is not None and one.scored_by == other.scored_by) or a <= b or b <= a:
        return False
    known = one.scored_by is not None and other.scored_by is not None
    return known or _are_ratings([*a]) or _are_ratings([*b])


def of_examples(name: str, source: Source, examples: Iterable[Example]) -> LoggedRewards:
    """Return the logged rewards of a data set's first examples."""
    found = [
        sum(reward) if isinstance(reward, Sequence) else reward
        for example in islice(examples, READ)
        for reward in example.rewards or ()
    ]
    return of_source(name, source, np.array(found, np.float64))


def scored_by(path: str | None) -> str | None:
    """Return the fingerprint of the reward that scored a file or folder, which the summary beside it holds."""
    folder = None if path is None else Path(path).expanduser().parent
    found = read_summary(folder).get(SCORED_BY) if folder is not None and is_finished(folder) else None
    return found if isinstance(found, str) else None


def compare_units(logged: LoggedRewards, reward: Reward) -> Verdict:
    """Return whether logged rewards have the unit of a reward, have another, or whether that cannot be known.

    They have it if this reward scored them, or if they take the two values of a reward that is right or wrong. They
    have another unit if they lie outside these two values, if another reward scored what a reward model is to score,
    or if they are labels or ratings beside scores of a reward model.
    """
    if logged.scored_by == reward.fingerprint():
        return "same"
    if not logged.levels:
        return "unknown"
    if reward.right is not None:
        return _compare_levels(logged, reward.right, wrong_of(reward))
    if isinstance(reward, RewardModel) and (logged.scored_by is not None or _are_ratings(logged.levels)):
        return "other"
    return "unknown"


def compare_with_sampled(logged: LoggedRewards, sampled: Iterable[float], by: str | None) -> Verdict:
    """Return whether logged rewards have the unit of sampled rewards whose reward is known by its fingerprint at most.

    Args:
        logged: the logged rewards.
        sampled: the different values of sampled ones, reward units.
        by: fingerprint of the reward that gave them.
    """
    ours, theirs = {*logged.levels}, {*sampled}
    if (by is not None and logged.scored_by == by) or ours <= theirs or theirs <= ours:
        return "same"
    if len(theirs) == 2 or (_are_ratings([*ours]) and not _are_ratings([*theirs])):
        return "other"
    return "unknown"


def wrong_of(reward: Reward) -> float | None:
    """Return what a reward gives to a wrong completion; None where it does not say so."""
    found = reward.about().get("wrong")
    return float(found) if isinstance(found, int | float) else None


def _compare_levels(logged: LoggedRewards, right: float, wrong: float | None) -> Verdict:
    if logged.right_and_wrong is not None and wrong is not None:
        return "same" if logged.right_and_wrong == (right, wrong) else "other"
    levels = logged.levels
    if wrong is not None and {*levels} <= {right, wrong}:
        return "same"
    return "other" if levels[-1] > right or (wrong is not None and levels[0] < wrong) else "unknown"


def _are_ratings(levels: Sequence[float]) -> bool:
    """Return whether all values are multiples of a coarse step."""
    return all((level / STEP).is_integer() for level in levels)


def unit_of(reward: Reward) -> str:
    """Return in words what a reward pays."""
    name = reward.about().get("name", type(reward).__name__)
    wrong = wrong_of(reward)
    if reward.right is not None:
        return f"{listed([reward.right] if wrong is None else [reward.right, wrong])} ({name})"
    path = getattr(reward, "path", None)
    return f"scores of its own ({name}{'' if path is None else f' {path}'})"


def listed(rewards: Iterable[float]) -> str:
    """Return rewards in words, the largest first; of many the largest and the smallest."""
    shown = [f"{r:g}" for r in sorted({*rewards}, reverse=True)]
    return " and ".join(shown) if len(shown) < 4 else f"{shown[0]} to {shown[-1]}"
