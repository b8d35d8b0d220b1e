"""`completion_metrics` measures sampled completions: means with 95 % intervals over prompts, pass@k, win rate."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from shiqrun.sampling.sampler import SampledCompletion
from shiqrun.util.intervals import HIGH, LOW, bootstrap, interval

TIE = 1e-5  # float32 scores of one text in batches of other shapes differ by less
PASS_AT = (1, 2, 5, 10, 20, 50, 100)


def completion_metrics(
    samples: Sequence[SampledCompletion],
    reference: Sequence[SampledCompletion] | None,
    *,
    beta: float | None,
    on_policy: bool,
    right: float | None = None,
) -> dict[str, float]:
    """Return the metrics of a policy from the completions that it sampled.

    Several completions of one prompt count as one observation (their mean), so that intervals are over prompts.

    Args:
        samples: completions of the policy, measured and scored as far as they can be.
        reference: the reference's completions of the same prompts, in the same order, scored; None without any.
        beta: KL temperature, reward units per nat; None leaves the regularised return out.
        on_policy: sampled at temperature 1 from the whole distribution. Only then is the mean log-ratio E_pi[log pi /
            pi_ref], a KL; else it is called `logratio_sum`, and there is no regularised return.
        right: reward of a right completion, for pass@k and solutions_distinct.

    Returns:
        reward, kl, regularised_return, reference_reward, win_rate and solutions_distinct with `_ci95` (half width);
        pass@k with `_ci95_low` and `_ci95_high`; entropy (nats a token), lengths in tokens, shares, distinct-n.
    """
    found = {"prompts": float(len({s.prompt.name for s in samples})), **_lengths(samples), **_variety(samples)}
    if all(s.entropy is not None for s in samples):
        tokens = sum(len(s.tokens) for s in samples)
        found["entropy"] = math.fsum((s.entropy or 0.0) * len(s.tokens) for s in samples) / tokens
    found |= _average("reward", samples, lambda s: s.reward)
    if "reward" in found:
        rewards = [s.reward for s in samples if s.reward is not None]
        found["reward_std"] = _deviation(rewards)
        found |= {"reward_min": min(rewards), "reward_max": max(rewards)}
        found["completions/cut_for_reward"] = sum(s.cut for s in samples) / len(samples)
    found |= _average("kl" if on_policy else "logratio_sum", samples, lambda s: s.log_ratio)
    if on_policy and beta is not None:
        found |= _average("regularised_return", samples, lambda s: _regularised_return(s, beta))
    if reference is not None and "reward" in found:
        wins = [_win(a, b) for a, b in zip(samples, reference, strict=True)]
        by_prompt = _by_prompt(samples, wins)
        found |= _average("reference_reward", reference, lambda s: s.reward)
        found["win_rate"], found["win_rate_ci95"] = interval([sum(w) / len(w) for w in by_prompt])
    return found if right is None else found | _pass_at(samples, right) | _solutions(samples, right)


BY_PART = ("reward", "kl", "logratio_sum", "regularised_return", "win_rate")
"""Metrics that are also given for each part of a mixture."""


def metrics_by_part(
    samples: Sequence[SampledCompletion], reference: Sequence[SampledCompletion] | None, **asked: Any
) -> dict[str, float]:
    """Return the metrics of `BY_PART` on the prompts of each part of a mixture, as `NAME/PART` with intervals.

    Args:
        samples, reference: as for `completion_metrics`.
        asked: its other arguments.
    """
    found: dict[str, float] = {}
    for part in sorted({s.prompt.part for s in samples} - {""}):
        picked = [n for n, s in enumerate(samples) if s.prompt.part == part]
        other = None if reference is None else [reference[n] for n in picked]
        of_part = completion_metrics([samples[n] for n in picked], other, **asked)
        for name in BY_PART:
            found |= {f"{name}/{part}{end}": of_part[name + end] for end in ("", "_ci95") if name + end in of_part}
    return found


def _average(
    name: str, samples: Sequence[SampledCompletion], value: Callable[[SampledCompletion], float | None]
) -> dict[str, float]:
    values = [value(s) for s in samples]
    if not samples or any(v is None for v in values):
        return {}
    means = [sum(group) / len(group) for group in _by_prompt(samples, [v for v in values if v is not None])]
    mean, half = interval(means)
    return {name: mean, f"{name}_ci95": half}


def _by_prompt(samples: Sequence[SampledCompletion], values: Iterable[float]) -> list[list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, value in zip(samples, values, strict=True):
        groups[sample.prompt.name].append(value)
    return list(groups.values())


def _regularised_return(sample: SampledCompletion, beta: float) -> float | None:
    return None if sample.reward is None or sample.log_ratio is None else sample.reward - beta * sample.log_ratio


def _win(policy: SampledCompletion, reference: SampledCompletion) -> float:
    """Return 1 for a win over the reference, 0 for a loss, 0.5 for equal texts and scores equal up to rounding."""
    ours, theirs = policy.reward or 0.0, reference.reward or 0.0
    tie = policy.text == reference.text or math.isclose(ours, theirs, rel_tol=TIE, abs_tol=TIE)
    return 0.5 if tie else float(ours > theirs)


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))


def _lengths(samples: Sequence[SampledCompletion]) -> dict[str, float]:
    """Return lengths of completions in tokens, with the stop token as in TRL, and the shares that ended or were cut."""
    lengths = [len(s.tokens) for s in samples]
    ended = [len(s.tokens) for s in samples if s.ended]
    found = {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1 - len(ended) / len(samples),
        "completions/eos_rate": len(ended) / len(samples),
    }
    return found | ({"completions/mean_terminated_length": sum(ended) / len(ended)} if ended else {})


def _variety(samples: Sequence[SampledCompletion]) -> dict[str, float]:
    """Return distinct-n, the share of different n-grams of words among all (Li et al. 2016, arXiv 1510.03055)."""
    found = {}
    for n in (1, 2):
        grams = [
            tuple(words[i : i + n]) for words in (s.text.split() for s in samples) for i in range(len(words) - n + 1)
        ]
        if grams:
            found[f"distinct_{n}"] = len(set(grams)) / len(grams)
    return found


def _pass_at(samples: Sequence[SampledCompletion], right: float) -> dict[str, float]:
    """Return pass@k for every k that each prompt has completions for, with a bootstrap interval over prompts."""
    groups = _by_prompt(samples, [float(s.reward == right) for s in samples])
    ks = [k for k in PASS_AT if k <= min(map(len, groups))]
    rates = np.array([[pass_at_k(len(g), round(sum(g)), k) for k in ks] for g in groups])  # [P, K]
    found: dict[str, float] = {}
    for k, mean, low, high in zip(ks, rates.mean(axis=0), *bootstrap(rates), strict=True):
        name = f"pass@{k}"
        found |= {name: float(mean), name + LOW: float(low), name + HIGH: float(high)}
    return found


def _solutions(samples: Sequence[SampledCompletion], right: float) -> dict[str, float]:
    """Return the mean number of different right completions of a prompt; white space makes no difference."""
    found: dict[str, set[str]] = {s.prompt.name: set() for s in samples}
    for s in samples:
        if s.reward == right:
            found[s.prompt.name].add(" ".join(s.text.split()))
    mean, half = interval([float(len(texts)) for texts in found.values()])
    return {"solutions_distinct": mean, "solutions_distinct_ci95": half}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k): the unbiased chance that one of k samples is right (arXiv 2107.03374).

    Raises:
        ValueError: fewer than k samples.
    """
    if n < k:
        raise ValueError(f"pass@{k} needs at least {k} samples, met {n}")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
