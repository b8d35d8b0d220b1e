"""`shiqrun pivotal`: many searches side by side, each prefix estimated by rollouts of the reference, on token ids."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Len
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.token_text import pieces
from shiqrun.errors import InputError
from shiqrun.estimates.bisection import ROUNDING, Bisection, Split
from shiqrun.estimates.jsonl_cache import CacheKind, JsonlCache
from shiqrun.estimates.prompt_values import asked
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Answered, Reward
from shiqrun.sampling.generate import Completion, sample_completions
from shiqrun.sampling.prompts import Prompt, padding_id, stop_tokens, tokens_key

KIND = CacheKind("pivotal", "pivotal tokens", column="visited", key="name")
SEARCH, AGAIN = 3, 4
"""Streams of random numbers, apart from those of evaluation and prompt values."""
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class PivotalSettings:
    """Keys of `pivotal:` in `conf/pivotal.yaml`. Rollouts are drawn at temperature 1: the chances are the reference's.

    Attributes:
        split: whose trajectories are searched.
        only: right (trajectories that the reward calls right, as in the SPO paper) or all.
        max_trajectories: searched at most, None for all; the first in the file's order.
        between: a prompt whose chance of success is outside is not searched.
        rollouts: K, completions from each position.
        gap: difference of chances, 0 to 1, that is looked into.
        bisect: where an interval is divided: logp (half of its log-probability) or index (half of its tokens).
        again: fresh rollouts from both sides of each token found, which decide whether it is pivotal; 0 for none.
        max_new_tokens: of a completion with its prefix.
        together: trajectories searched side by side.
        batch_size: completions sampled together.
        seed: of the sampling alone.

    Raises:
        InputError: `between` is no interval of chances.
    """

    split: Literal["train", "val"]
    only: Literal["right", "all"]
    max_trajectories: Annotated[int, Gt(0)] | None
    between: Annotated[list[float], Len(2, 2)]
    rollouts: Annotated[int, Gt(0)]
    gap: Annotated[float, Gt(0), Le(1)]
    bisect: Split
    again: Annotated[int, Ge(0)]
    max_new_tokens: Annotated[int, Gt(0)]
    together: Annotated[int, Gt(0)]
    batch_size: Annotated[int, Gt(0)]
    seed: Annotated[int, Ge(0)]

    def __post_init__(self) -> None:
        low, high = self.between
        if not 0 <= low <= high <= 1:
            raise InputError(f"pivotal.between={list(self.between)}: expected [low, high], chances from 0 to 1")

    def made_with(self, reference: str, reward: Reward) -> dict[str, Any]:
        """What equal searches need, for `JsonlCache`."""
        names = ("rollouts", "gap", "bisect", "again", "between", "max_new_tokens", "seed")
        own = {name: getattr(self, name) for name in names}
        return {"reference": reference, "reward": reward.fingerprint(), **own, "between": list(self.between)}


@dataclass(frozen=True)
class Walk:
    """A trajectory to search.

    Attributes:
        prompt: that it answers.
        tokens: `[T]` int64, its actions.
        logp: `[T]`, nats, under the reference.
        text: of the actions.
        reward: of the whole.
        source: where it came from.
    """

    prompt: Prompt
    tokens: np.ndarray
    logp: np.ndarray
    text: str
    reward: float
    source: str

    @property
    def name(self) -> str:
        """Equal for equal tokens after an equal prompt with an equal answer; prompt ids of two data sets may meet."""
        return f"{asked(self.prompt)} {tokens_key(self.tokens)}"


@dataclass(frozen=True)
class Rollouts:
    """Completions from one position: their whole texts, prefix included, and what they earn."""

    texts: list[str]
    rewards: list[float]

    def rate(self, right: float) -> float:
        """Share of them that is right."""
        return sum(r == right for r in self.rewards) / len(self.rewards)


class Estimates:
    """Rollouts from prefixes, each prefix of a prompt sampled once however many searches ask.

    Args:
        policy: the reference, on its device.
        tokenizer: of the policy.
        reward: of a whole completion; it says what is right.
        settings: see `PivotalSettings`.
    """

    def __init__(
        self, policy: Policy, tokenizer: PreTrainedTokenizerBase, reward: Reward, settings: PivotalSettings
    ) -> None:
        self.policy, self.tokenizer, self.reward, self.settings = policy, tokenizer, reward, settings
        self._stop, self._pad = stop_tokens(tokenizer, policy.causal_lm), padding_id(tokenizer)
        self._known: dict[tuple[int, str, str], Rollouts] = {}
        self.rollouts, self.tokens, self.positions = 0, 0, 0

    def of(self, places: Sequence[tuple[Walk, int]], *, stream: int, number: int) -> list[Rollouts]:
        """`number` rollouts from each (trajectory, position)."""
        names = [(stream, asked(walk.prompt), tokens_key(walk.tokens[:at])) for walk, at in places]
        new = {name: place for name, place in zip(names, places, strict=True) if name not in self._known}
        if new:
            self._sample(new, number)
        return [self._known[name] for name in names]

    def forget(self) -> None:
        """Lets go of all rollouts; no prompt is in two portions."""
        self._known.clear()

    def _sample(self, new: dict[tuple[int, str, str], tuple[Walk, int]], number: int) -> None:
        begun = [np.concatenate([walk.prompt.tokens, walk.tokens[:at]]) for walk, at in new.values()]
        keys = [[self.settings.seed, name[0], new[name][0].prompt.key, int(name[2], 16)] for name in new]
        completions = sample_completions(
            self.policy,
            [tokens for tokens in begun for _ in range(number)],
            [[*key, k] for key in keys for k in range(number)],
            stop=self._stop,
            pad=self._pad,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=1.0,
            top_p=1.0,
            batch_size=self.settings.batch_size,
            description="",
        )
        places = [place for place in new.values() for _ in range(number)]
        texts = [self._text(walk, at, c) for (walk, at), c in zip(places, completions, strict=True)]
        rewards = self.reward.score([_answered(walk.prompt, t) for (walk, _), t in zip(places, texts, strict=True)])
        for n, name in enumerate(new):
            part = slice(n * number, (n + 1) * number)
            self._known[name] = Rollouts(texts[part], rewards[part])
        self.rollouts += len(texts)
        self.tokens += sum(len(c.tokens) for c in completions)
        self.positions += len(new)

    def _text(self, walk: Walk, at: int, completion: Completion) -> str:
        """The prefix with its completion, cut where a whole answer would have been."""
        said = completion.tokens[:-1] if completion.ended else completion.tokens
        ids = np.concatenate([walk.tokens[:at], said])[: self.settings.max_new_tokens]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _answered(prompt: Prompt, text: str) -> Answered:
    return Answered(prompt.messages, [{"role": "assistant", "content": text}], prompt.answer, prompt.source)


def search(estimates: Estimates, walks: Sequence[Walk], file: JsonlCache, progress: Progress = lambda x, _: x) -> int:
    """Searches and keeps what the file lacks; the number of trajectories that it lacked.

    Trajectories of a prompt are searched together, so that what they share is estimated once.

    Args:
        estimates: of the reference.
        walks: to search.
        file: where their rows are kept, with `name`.
        progress: wraps the portions.
    """
    lacking = list({w.name: w for w in walks if w.name not in file}.values())
    portions: list[list[Walk]] = [[]]
    for _, same in groupby(sorted(lacking, key=lambda w: w.name), key=lambda w: asked(w.prompt)):
        if len(portions[-1]) >= estimates.settings.together:
            portions.append([])
        portions[-1] += same
    for portion in progress([p for p in portions if p], f"pivotal tokens, portions of {estimates.settings.together}"):
        file.append(_searched(estimates, portion))
        estimates.forget()
    return len(lacking)


def _searched(estimates: Estimates, walks: Sequence[Walk]) -> list[dict[str, Any]]:
    """The rows of trajectories that are searched side by side, a round of estimates at a time."""
    settings, right = estimates.settings, estimates.reward.right
    assert right is not None
    searches = [Bisection(w.logp, gap=settings.gap, split=settings.bisect) for w in walks]
    visited: list[dict[int, dict[str, Any]]] = [{} for _ in walks]
    for walk, one, seen in zip(walks, searches, visited, strict=True):
        end = len(walk.tokens)
        one.tell({end: float(walk.reward == right)})
        seen[end] = {"at": end, "rewards": [walk.reward]}
    while wanted := [(n, at) for n, one in enumerate(searches) for at in one.wanted]:
        found = estimates.of([(walks[n], at) for n, at in wanted], stream=SEARCH, number=settings.rollouts)
        for (n, at), rollouts in zip(wanted, found, strict=True):
            visited[n][at] = {"at": at, "rewards": rollouts.rewards, "texts": rollouts.texts}
            searches[n].tell({at: rollouts.rate(right)})
            if at == 0 and not _inside(searches[n], settings):
                searches[n].stop()
    again = _looked_at_again(estimates, walks, searches)
    return [
        _row(walk, one, seen, fresh, estimates)
        for walk, one, seen, fresh in zip(walks, searches, visited, again, strict=True)
    ]


def _looked_at_again(
    estimates: Estimates, walks: Sequence[Walk], searches: Sequence[Bisection]
) -> list[dict[int, dict[str, Any]]]:
    """Fresh rollouts from both sides of every token found; the end of a trajectory is known as it is."""
    again: list[dict[int, dict[str, Any]]] = [{} for _ in walks]
    number = estimates.settings.again
    if not number:
        return again
    sides = [sorted({t + side for t in one.pivots() for side in (0, 1)}) for one in searches]
    wanted = [(n, at) for n, walk in enumerate(walks) for at in sides[n] if at < len(walk.tokens)]
    found = estimates.of([(walks[n], at) for n, at in wanted], stream=AGAIN, number=number)
    for (n, at), rollouts in zip(wanted, found, strict=True):
        again[n][at] = {"at": at, "rewards": rollouts.rewards, "texts": rollouts.texts}
    return again


def _row(
    walk: Walk, one: Bisection, visited: dict[int, dict[str, Any]], again: dict[int, dict[str, Any]], made: Estimates
) -> dict[str, Any]:
    """What is kept of a trajectory: its tokens, every estimate, and the tokens found."""
    right = made.reward.right
    tokens = list(pieces(walk.tokens.tolist(), made.tokenizer))
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
        "prompt": walk.prompt.messages,
        "completion": [{"role": "assistant", "content": walk.text}],
        "reward": walk.reward,
        "prompt_id": walk.prompt.prompt_id,
        **({} if walk.prompt.answer is None else {"answer": walk.prompt.answer}),
        "source": walk.source,
        "name": walk.name,
        "prompt_tokens": tokens_key(walk.prompt.tokens),
        "searched": _inside(one, made.settings),
        "tokens": tokens,
        "input_ids": walk.tokens.tolist(),
        "rates": [{"at": at, "rate": one.rates[at]} for at in sorted(one.rates)],
        "visited": [visited[at] for at in sorted(visited)],
        "again": [again[at] for at in sorted(again)],
        "pivots": found,
    }


def _inside(one: Bisection, settings: PivotalSettings) -> bool:
    """Whether the prompt's own chance is one that is searched."""
    low, high = settings.between
    return low - ROUNDING <= one.rates[0] <= high + ROUNDING
