"""`episode_metrics` measures played episodes: means over tasks with 95 % intervals, shares and totals."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from shiqrun.environments.environment import NO_ROOM, TOO_MANY_STEPS, EpisodeInfo
from shiqrun.sampling.sampler import SampledCompletion
from shiqrun.util.intervals import interval


class Finished(Protocol):
    """`Finished` is the protocol of a finished episode, see `episodes.EpisodeResult`."""

    @property
    def task(self) -> str:
        """Return the name of the episode's task."""

    @property
    def rewards(self) -> list[float]:
        """Return the reward of each message of the policy, reward units."""

    @property
    def truncated(self) -> str:
        """Return why the episode was cut off; empty if it was not."""

    @property
    def info(self) -> EpisodeInfo:
        """Return what the environment reports of the episode."""

    @property
    def completions(self) -> list[SampledCompletion]:
        """Return the policy's messages as they were sampled."""

    @property
    def log_ratio(self) -> float | None:
        """Return the sum of log pi / pi_ref over the policy's tokens, nats."""


def episode_metrics(played: Sequence[Finished], *, beta: float | None, on_policy: bool) -> dict[str, float]:
    """Return the metrics of a policy from the episodes that it played.

    Several episodes of one task count as one observation (their mean), so that intervals are over tasks.

    Args:
        played: finished episodes, of one task or several.
        beta: KL temperature, reward units per nat; None leaves the regularised return out.
        on_policy: sampled at temperature 1 from the whole distribution. Only then is the mean log-ratio a KL; else it
            is called `logratio_sum`, and there is no regularised return.

    Returns:
        reward (return of an episode), kl (E_pi[sum log pi / pi_ref] over the policy's tokens) and regularised_return,
        each with `_ci95` (half width); the environment's own metrics, likewise, its shares and totals; episodes,
        episodes/no_room, episodes/too_many_steps; lengths and entropy of the policy's messages.
    """
    groups: dict[str, list[Finished]] = {}
    for p in played:
        groups.setdefault(p.task, []).append(p)
    by_task = [*groups.values()]
    found = {"episodes": float(len(played))} | _average("reward", by_task, lambda p: sum(p.rewards))
    for name in _names(p.info.metrics for p in played):
        found |= _average(name, by_task, lambda p: p.info.metrics.get(name))  # noqa: B023 - called at once
    for name in _names(p.info.part_metrics for p in played):
        if not all(name in p.info.part_metrics for p in played):
            found |= _average(name, by_task, lambda p: p.info.part_metrics.get(name))  # noqa: B023 - called at once
    if all(p.log_ratio is not None for p in played if p.completions) and any(p.completions for p in played):
        found |= _average("kl" if on_policy else "logratio_sum", by_task, lambda p: p.log_ratio or 0.0)
        if on_policy and beta is not None:
            found |= _average("regularised_return", by_task, lambda p: sum(p.rewards) - beta * (p.log_ratio or 0.0))
    return found | _counts(played) | _messages([c for p in played for c in p.completions])


def _average(
    name: str, by_task: Sequence[Sequence[Finished]], value: Callable[[Finished], float | None]
) -> dict[str, float]:
    """Return the mean of a value over the tasks whose episodes have it, and its interval's half width."""
    values = [[v for p in episodes if (v := value(p)) is not None] for episodes in by_task]
    mean, half = interval([sum(known) / len(known) for known in values if known])
    return {name: mean, f"{name}_ci95": half}


def _names(mappings: Iterable[Iterable[str]]) -> list[str]:
    """Return every key of some mappings, in the order in which they first occur."""
    return [*dict.fromkeys(name for mapping in mappings for name in mapping)]


def _counts(played: Sequence[Finished]) -> dict[str, float]:
    """Return the environment's shares and totals, and the shares of episodes that a limit ended."""
    found: dict[str, float] = {}
    for name in _names(p.info.shares for p in played):
        parts = [p.info.shares[name] for p in played if name in p.info.shares]
        whole = sum(total for _, total in parts)
        found[name] = sum(amount for amount, _ in parts) / whole if whole else 0.0
    for why in (TOO_MANY_STEPS, NO_ROOM):
        found[f"episodes/{why.replace(' ', '_')}"] = sum(p.truncated == why for p in played) / len(played)
    for name in _names(p.info.totals for p in played):
        found[name] = float(sum(p.info.totals.get(name, 0.0) for p in played))
    return found


def _messages(completions: Sequence[SampledCompletion]) -> dict[str, float]:
    """Return message lengths in tokens, the share of messages that were cut off, and the entropy in nats a token."""
    if not completions:
        return {}
    tokens = sum(len(c.tokens) for c in completions)
    found = {"completions/mean_length": tokens / len(completions)}
    found["completions/clipped_ratio"] = sum(not c.ended for c in completions) / len(completions)
    if all(c.entropy is not None for c in completions):
        found["entropy"] = sum((c.entropy or 0.0) * len(c.tokens) for c in completions) / tokens
    return found
