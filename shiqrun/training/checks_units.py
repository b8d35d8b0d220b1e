"""Logged rewards and those of sampled completions must have one unit where a run mixes them or compares them.

`unit_is_mixed` is a rule that refuses a run, `unit_is_unknown` one that warns; `algo.same_unit=true` turns both off.
"""

from collections.abc import Iterator
from typing import Any

from shiqrun.batching.rows import Rows
from shiqrun.losses.requirements import needs_of
from shiqrun.rewards.model import RewardModel
from shiqrun.rewards.units import LoggedRewards, Verdict, compare_units, may_differ, of_source, scored_by, unit_of
from shiqrun.training.plan import Plan
from shiqrun.training.source_losses import source_losses

OVERRIDE = "algo.same_unit=true"
BOTH = "a step trains on both"


def unit_is_mixed(plan: Plan, logged: Rows, further: Rows | None) -> str | None:
    """Logged rewards that are known to have another unit than `eval.reward` must not be trained on beside its own."""
    found = next(_mixed_with_samples(plan, logged, further, "other"), None)
    return None if found is None else _refusal(plan, *found)


def unit_is_unknown(plan: Plan, logged: Rows, further: Rows | None) -> str | None:
    """Logged rewards that may have another unit than `eval.reward` are rarely meant to be trained on beside its own."""
    found = next(_mixed_with_samples(plan, logged, further, "unknown"), None)
    if found is None or plan.reward is None:
        return None
    rewards, where = found
    return (
        f"{rewards.origin} pays {rewards}, eval.reward {unit_of(plan.reward)}: they cannot be known to have one unit, "
        f"and {where}; score the logged rows with that reward (`shiqrun score`), or set {OVERRIDE} if they agree"
    )


def parts_look_different(plan: Plan, logged: Rows) -> str | None:
    """The rewards of all parts of a mixture should have one unit, since one method learns from all of them."""
    parts = logged.parts
    if parts is None or plan.algo.same_unit or not _reads_the_unit(plan.loss):
        return None
    first, *others = (
        of_source(name, part.source, logged.returns[parts.number == number])
        for number, (name, part) in enumerate(plan.source.parts.items())
    )
    for other in others:
        if may_differ(first, other):
            one, two = (rewards.origin.replace("data=", "data.parts.") for rewards in (first, other))
            return (
                f"{one} pays {first}, {two} {other}: these do not look like one unit, and {plan.name} learns from "
                "both; give the parts rewards that agree (pair_rewards, or `shiqrun score` on each file with one "
                f"reward), or set {OVERRIDE} if they do"
            )
    return None


def logged_unit(plan: Plan, logged: Rows) -> Verdict:
    """Return whether the rewards that a run learns from have the unit of `eval.reward`."""
    if plan.reward is None or plan.algo.same_unit or plan.rollout is not None:
        return "same"  # what is sampled is scored by it, and logged rewards of another unit are refused
    return compare_units(of_source(plan.names["data"], plan.source, logged.returns), plan.reward)


def _mixed_with_samples(
    plan: Plan, logged: Rows, further: Rows | None, verdict: Verdict
) -> Iterator[tuple[LoggedRewards, str]]:
    """Yield the logged rewards that meet sampled ones and have this verdict, and where they meet."""
    if plan.rollout is None or plan.reward is None or plan.algo.same_unit or not _reads_the_unit(plan.loss):
        return
    own = source_losses(plan.rollout, plan.loss)
    trained = [name for name in plan.shares if _reads_the_unit(own.get(name, plan.loss))]
    of_data = of_source(plan.names["data"], plan.source, logged.returns)
    met = []
    if "logged" in trained or "annotated" in trained:
        met.append((of_data, BOTH))
    elif plan.algo.reward_offset == "mean":
        met.append((of_data, "algo.reward_offset=mean takes the logged mean from sampled rewards"))
    if "further" in trained and further is not None:
        file = str(plan.rollout.path)
        met.append((LoggedRewards(f"rollout.path={file}", further.returns, None, scored_by(file)), BOTH))
    yield from (pair for pair in met if compare_units(pair[0], plan.reward) == verdict)


def _reads_the_unit(loss: Any) -> bool:
    """Return whether a loss changes with the unit of rewards; one that reads the order of two returns does not."""
    return "rewards" in needs_of(loss) and "order" not in needs_of(loss)


def _refusal(plan: Plan, rewards: LoggedRewards, where: str) -> str:
    reward = plan.reward
    assert reward is not None
    origin = " (scored by another reward)" if rewards.scored_by and isinstance(reward, RewardModel) else ""
    cure = "score the logged rows with that reward (`shiqrun score`)"
    if reward.right is not None:
        cure = "make them agree by eval.reward.right and eval.reward.wrong, or data.rewards where the data set has it"
    without = "set algo.reward_offset=none" if "reward_offset" in where else "sample alone (rollout.offline=0)"
    return (
        f"{rewards.origin} pays {rewards}{origin}, eval.reward {unit_of(reward)}: another unit, and {where}; {cure}, "
        f"{without}, or set {OVERRIDE} if they have one unit all the same"
    )
