"""Pivotal Token Search runs on many trajectories side by side; rollouts of the reference estimate each prefix.

Phi-4, arXiv 2412.08905; SPO, arXiv 2503.05453.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.batching.token_text import pieces
from shiqrun.estimates.bisection import ROUNDING, Bisection
from shiqrun.estimates.jsonl_cache import CacheKind, JsonlCache
from shiqrun.estimates.pivotal_settings import PivotalSettings
from shiqrun.estimates.prefix_sampler import PrefixSampler, SearchedTrajectory
from shiqrun.estimates.prompt_values import prompt_key

KIND = CacheKind("pivotal", "pivotal tokens", column="visited", key="name")
SEARCH, AGAIN = 3, 4
"""The streams of random numbers for searching and for the fresh rollouts that confirm; evaluation uses others."""
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def search(
    estimates: PrefixSampler,
    trajectories: Sequence[SearchedTrajectory],
    file: JsonlCache,
    progress: Progress = lambda x, _: x,
) -> int:
    """Search the trajectories that the file lacks and store the results; return the number of those trajectories.

    Trajectories of a prompt are searched together, so that what they share is estimated once.

    Args:
        estimates: samples rollouts of the reference.
        trajectories: to search.
        file: stores one row per trajectory.
        progress: wraps the portions, to show how far it is.
    """
    lacking = list({w.name: w for w in trajectories if w.name not in file}.values())
    portions: list[list[SearchedTrajectory]] = [[]]
    for _, same in groupby(sorted(lacking, key=lambda w: w.name), key=lambda w: prompt_key(w.prompt)):
        if len(portions[-1]) >= estimates.settings.together:
            portions.append([])
        portions[-1] += same
    for portion in progress([p for p in portions if p], f"pivotal tokens, portions of {estimates.settings.together}"):
        file.append(_search_portion(estimates, portion))
        estimates.forget()
    return len(lacking)


def _search_portion(estimates: PrefixSampler, trajectories: Sequence[SearchedTrajectory]) -> list[dict[str, Any]]:
    """Search trajectories side by side, a round of estimates at a time; return the rows to store."""
    settings, right = estimates.settings, estimates.reward.right
    assert right is not None
    searches = [Bisection(w.logp, gap=settings.gap, split=settings.bisect) for w in trajectories]
    visited: list[dict[int, dict[str, Any]]] = [{} for _ in trajectories]
    for trajectory, one, seen in zip(trajectories, searches, visited, strict=True):
        end = len(trajectory.tokens)
        one.record({end: float(trajectory.reward == right)})
        seen[end] = {"at": end, "rewards": [trajectory.reward]}
    while wanted := [(n, at) for n, one in enumerate(searches) for at in one.wanted]:
        found = estimates.rollouts_behind(
            [(trajectories[n], at) for n, at in wanted], stream=SEARCH, number=settings.rollouts
        )
        for (n, at), rollouts in zip(wanted, found, strict=True):
            visited[n][at] = {"at": at, "rewards": rollouts.rewards, "texts": rollouts.texts}
            searches[n].record({at: rollouts.rate(right)})
            if at == 0 and not _inside(searches[n], settings):
                searches[n].stop()
    again = _sample_again(estimates, trajectories, searches)
    return [
        _row(trajectory, one, seen, fresh, estimates)
        for trajectory, one, seen, fresh in zip(trajectories, searches, visited, again, strict=True)
    ]


def _sample_again(
    estimates: PrefixSampler, trajectories: Sequence[SearchedTrajectory], searches: Sequence[Bisection]
) -> list[dict[int, dict[str, Any]]]:
    """Return fresh rollouts from both sides of every token found; the reward at a trajectory's end needs none."""
    again: list[dict[int, dict[str, Any]]] = [{} for _ in trajectories]
    number = estimates.settings.again
    if not number:
        return again
    sides = [sorted({t + side for t in one.pivots() for side in (0, 1)}) for one in searches]
    wanted = [(n, at) for n, trajectory in enumerate(trajectories) for at in sides[n] if at < len(trajectory.tokens)]
    found = estimates.rollouts_behind([(trajectories[n], at) for n, at in wanted], stream=AGAIN, number=number)
    for (n, at), rollouts in zip(wanted, found, strict=True):
        again[n][at] = {"at": at, "rewards": rollouts.rewards, "texts": rollouts.texts}
    return again


def _row(
    trajectory: SearchedTrajectory,
    one: Bisection,
    visited: dict[int, dict[str, Any]],
    again: dict[int, dict[str, Any]],
    made: PrefixSampler,
) -> dict[str, Any]:
    """Return the row to store for a trajectory: its tokens, every estimate, and the tokens found."""
    right = made.reward.right
    tokens = list(pieces(trajectory.tokens.tolist(), made.tokenizer))
    fresh = {at: sum(r == right for r in x["rewards"]) / len(x["rewards"]) for at, x in again.items()}
    fresh[len(tokens)] = one.rates[len(tokens)]
    found = []
    for t in one.pivots():
        pivot: dict[str, Any] = {"at": t, "token": tokens[t], "first": one.rates[t + 1] - one.rates[t]}
        if again:
            pivot |= {"before": fresh[t], "after": fresh[t + 1], "delta": fresh[t + 1] - fresh[t]}
            pivot["confirmed"] = abs(pivot["delta"]) > one.gap - ROUNDING
        found.append(pivot)
    return {
        "prompt": trajectory.prompt.messages,
        "completion": [{"role": "assistant", "content": trajectory.text}],
        "reward": trajectory.reward,
        "prompt_id": trajectory.prompt.prompt_id,
        **({} if trajectory.prompt.answer is None else {"answer": trajectory.prompt.answer}),
        "source": trajectory.source,
        "name": trajectory.name,
        "prompt_tokens": tokens_key(trajectory.prompt.tokens),
        "searched": _inside(one, made.settings),
        "tokens": tokens,
        "input_ids": trajectory.tokens.tolist(),
        "rates": [{"at": at, "rate": one.rates[at]} for at in sorted(one.rates)],
        "visited": [visited[at] for at in sorted(visited)],
        "again": [again[at] for at in sorted(again)],
        "pivots": found,
    }


def _inside(one: Bisection, settings: PivotalSettings) -> bool:
    """Return whether the prompt's own chance of success lies where trajectories are searched."""
    low, high = settings.between
    return low - ROUNDING <= one.rates[0] <= high + ROUNDING
