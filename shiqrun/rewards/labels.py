"""A reward scores the completions of a data set in chunks, and each chunk's scores are kept in a cache on disk."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shiqrun.batching.logged_data import SPLITS, Split
from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered, Bounded, Judging, Progress, Reward
from shiqrun.types import Example
from shiqrun.util.atomic import write_atomic
from shiqrun.util.intervals import interval

log = logging.getLogger("shiqrun")
DIGEST = "digest"
"""The key of a chunk of the cache that holds a hash of its scores."""
CHUNK = 256
"""Number of completions that are scored and written to disk together."""


class CachedScore(NamedTuple):
    """A cached score is what the cache holds of a completion.

    Attributes:
        tokens: length of prompt and completion; 0 where the reward reads no tokens.
        score: reward units; None where the completion is too long.
        verdict: of a reward that gives verdicts, else None.
    """

    tokens: int
    score: float | None
    verdict: str | None = None


class ScoreCache:
    """A score cache holds scores of one reward on disk, found by the reward's fingerprint, prompt and completion.

    A chunk is a file that is written as a whole, so that a process killed at any moment leaves whole files.

    Args:
        reward: the reward model or verifier.
        directory: `cache_dir`.
        max_length: tokens; longer completions get no score. None: the reward's context.

    Attributes:
        found: number of completions whose score an earlier run had left.
        computed: number of completions whose score was computed now.

    Raises:
        InputError: `max_length` is more than the reward can read, or the reward reads no tokens.
    """

    def __init__(self, reward: Reward, directory: Path, max_length: int | None) -> None:
        self.reward, self.found, self.computed = reward, 0, 0
        self.limit = _limit(reward, max_length)
        self.folder = directory / "scores" / _hash(reward.fingerprint())
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known = dict(self._read())
        self._old = frozenset(self._known)

    def scores_of(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[CachedScore]:
        """Return the score of every completion, from the cache or computed now; one that is too long has none."""
        chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
        everything: list[CachedScore] = []
        for chunk in progress(chunks, f"scoring, chunks of {CHUNK} completions"):
            keys = [_key(item) for item in chunk]
            wanted = {key: item for key, item in zip(keys, chunk, strict=True) if not self._has(key)}
            if wanted:
                self._keep(self._score(wanted))
            new = [k._replace(score=None) if self._too_long(k) else k for k in (self._known[key] for key in keys)]
            everything += new
            old = [key in self._old and key not in wanted for key in keys]
            self.found += sum(there for there, known in zip(old, new, strict=True) if known.score is not None)
            self.computed += sum(not there for there, known in zip(old, new, strict=True) if known.score is not None)
        return everything

    def _has(self, key: str) -> bool:
        known = self._known.get(key)
        return known is not None and (known.score is not None or self._too_long(known))

    def _too_long(self, known: CachedScore) -> bool:
        return self.limit is not None and known.tokens > self.limit

    def _score(self, items: dict[str, Answered]) -> dict[str, CachedScore]:
        given = [*items.values()]
        lengths = self.reward.lengths(given) if isinstance(self.reward, Bounded) else [0] * len(given)
        known = {key: CachedScore(length, None) for key, length in zip(items, lengths, strict=True)}
        short = [key for key in items if not self._too_long(known[key])]
        given = [items[key] for key in short]
        verdicts: Sequence[str | None] = [None] * len(given)
        if isinstance(self.reward, Judging):
            verdicts = words = self.reward.verdicts(given)
            scores = [self.reward.worth(word) for word in words]
        else:
            scores = self.reward.score(given)
        new = zip(short, scores, verdicts, strict=True)
        return known | {key: CachedScore(known[key].tokens, score, verdict) for key, score, verdict in new}

    def _keep(self, new: dict[str, CachedScore]) -> None:
        self._known |= new
        text = json.dumps(new)
        write_atomic(self.folder / f"{_hash(' '.join(new))}.json", json.dumps({DIGEST: _hash(text), "scores": new}))

    def _read(self) -> Iterator[tuple[str, CachedScore]]:
        for file in sorted(self.folder.glob("*.json")):
            try:
                yield from [
                    (key, CachedScore(int(tokens), None if score is None else float(score), *verdict))
                    for key, (tokens, score, *verdict) in _scores_in(file).items()
                ]
            except (OSError, ValueError, TypeError, AttributeError) as error:
                log.warning(f"{file}: cannot be read ({error}); its scores are computed again")


def _scores_in(file: Path) -> dict[str, Any]:
    """Return the scores of a chunk; one that an older version wrote has no hash.

    Raises:
        ValueError: it is no JSON, or not as it was written.
        OSError: it cannot be read.
    """
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "scores" not in content:
        return content
    if content.get(DIGEST) != _hash(json.dumps(content["scores"])):
        raise ValueError("its scores are not those that were written")
    found: dict[str, Any] = content["scores"]
    return found


def _limit(reward: Reward, max_length: int | None) -> int | None:
    """Return the most tokens that a completion may have with its prompt; None where the reward reads no tokens."""
    if not isinstance(reward, Bounded):
        if max_length is not None:
            raise InputError(f"data.max_length={max_length}: this reward reads no tokens; leave it out")
        return None
    context = reward.context()
    if max_length is not None and context is not None and max_length > context:
        raise InputError(
            f"data.max_length={max_length} is more than the {context} tokens that the reward model can read"
        )
    return max_length or context


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _key(item: Answered) -> str:
    """Return a hash of a prompt with its completion, equal for those to which every reward must give the same score."""
    text = [list(item.prompt), list(item.completion), item.answer]
    return _hash(json.dumps(text, sort_keys=True, ensure_ascii=False, default=str))


@dataclass(frozen=True)
class Labelled:
    """A labelled example has a split and, for each completion, a score and perhaps the reward's verdict."""

    split: Split
    example: Example
    scores: list[float]
    verdicts: list[str] | None = None


def label(
    given: Sequence[tuple[Split, Example]], cache: ScoreCache, dropped: Counter[str], progress: Progress
) -> list[Labelled]:
    """Score the completions of examples, and return the examples in order without completions that are too long.

    A pair loses both completions where one is too long.

    Args:
        given: the examples and their splits, from `both_splits`.
        cache: computes or finds the scores.
        dropped: counts completions that are too long, by reason.
        progress: wraps the chunks.
    """
    items = [
        Answered(e.messages, completion, e.answer, f"{e.source}, completion {k}")
        for _, e in given
        for k, completion in enumerate(e.completions, 1)
    ]
    known = iter(cache.scores_of(items, progress))
    labelled = []
    for split, example in given:
        own = [next(known) for _ in example.completions]
        fits = [i for i, k in enumerate(own) if k.score is not None]
        if len(fits) < len(own):
            fits = [] if example.alone else fits
            dropped[f"longer than {cache.limit} tokens of the reward model (data.max_length)"] += len(own) - len(fits)
        if fits:
            example = replace(example.pick(fits), rewards=None)
            scores = [s for i in fits if (s := own[i].score) is not None]
            verdicts = [word for i in fits if (word := own[i].verdict) is not None]
            labelled.append(Labelled(split, example, scores, verdicts or None))
    return labelled


def statistics(labelled: Iterable[Labelled]) -> dict[str, float | int]:
    """Return statistics of the reward's scores in each split: counts, mean, deviation, extremes, accuracy on pairs.

    The accuracy is the share of pairs whose chosen completion has the higher score, ties counted half, with the half
    width of its 95 % interval.
    """
    everything, found = [*labelled], dict[str, Any]()
    for split in SPLITS:
        mine = [x for x in everything if x.split == split]
        scores = np.array([s for x in mine for s in x.scores])
        found |= {f"{split}/examples": len(mine), f"{split}/completions": len(scores)}
        if len(scores):
            numbers = (("mean", scores.mean()), ("std", scores.std()), ("min", scores.min()), ("max", scores.max()))
            found |= {f"{split}/score_{name}": float(number) for name, number in numbers}
        wins = [_wins(*x.scores) for x in mine if x.example.alone and len(x.scores) == 2]
        if wins:
            mean, half = interval(wins)
            found |= {f"{split}/pairs": len(wins), f"{split}/accuracy": mean}
            found |= {f"{split}/accuracy_ci95": half} if len(wins) > 1 else {}
    return found


def _wins(chosen: float, rejected: float) -> float:
    return 0.5 if chosen == rejected else float(chosen > rejected)
