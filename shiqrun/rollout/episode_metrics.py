"""`episode_metrics` measures the episodes that were sampled for the steps between two logged ones."""

from collections.abc import Sequence

from shiqrun.environments.environment import NO_ROOM, OUT_OF_RESOURCES, SPECIAL_TOKEN, TOO_MANY_STEPS
from shiqrun.rollout.trajectory import Turns

FAILED = "episodes/failed"
"""Metric by name: episodes that were left out because their environment could not play on."""
ENDS = {
    "no_room": NO_ROOM,
    "too_many_steps": TOO_MANY_STEPS,
    "special_token": SPECIAL_TOKEN,
    "stopped": OUT_OF_RESOURCES,
}
"""Metrics by name, and the reason of a truncation whose share each has."""


def episode_metrics(found: Sequence[Turns]) -> dict[str, float]:
    """Return means over sampled episodes: messages of the policy, and the shares of what cut episodes off.

    Args:
        found: the turns of each episode; none where a run samples completions of prompts.

    Returns:
        messages (of the policy in an episode), reward_per_message (mean over all, reward units), and under
        `episodes/` the shares of the reasons in `ENDS`, and `other` for all further ones.
    """
    if not found:
        return {}
    rewards = [reward for turns in found for reward in turns.rewards]
    why = [turns.truncated for turns in found]
    shares = {name: why.count(reason) / len(found) for name, reason in ENDS.items()}
    other = sum(bool(reason) and reason not in ENDS.values() for reason in why) / len(found)
    return {
        "messages": len(rewards) / len(found),
        "reward_per_message": sum(rewards) / len(rewards),
        **{f"episodes/{name}": share for name, share in (shares | {"other": other}).items()},
    }
