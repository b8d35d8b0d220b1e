"""GRPO, RLOO and OAPL once more, as loops over prompts, completions and tokens."""

from functools import partial
from math import exp, log, sqrt

import torch

from shiqrun import losses
from tests.losses.rows import BETA


def contrasts(rows):
    """(row, its regularised return under the proximal policy, those of the other completions of its prompt)."""
    earned = [
        sum(
            float(r) - BETA * (p - float(l0 - v0))
            for r, p, l0, v0 in zip(row.r, row.proximal, row.l0, row.v0, strict=True)
        )
        for row in rows
    ]
    for i, row in enumerate(rows):
        if row.r:
            yield (
                row,
                earned[i],
                [earned[j] for j, other in enumerate(rows) if other.r and j != i and other.group == row.group],
            )


def by_token(row, advantage, low, high, cap):
    """The terms of a completion's tokens, as they are descended."""
    for t in row.actions:
        rho = torch.exp(row.l[t] - row.v[t] - row.proximal[t])
        weight = min(exp(row.proximal[t] - row.behaviour[t]), cap)
        yield -weight * min(rho * advantage, min(max(rho, 1 - low), 1 + high) * advantage)


def grpo(rows, clip_low=0.2, clip_high=0.2, scale="group", units="action", importance_cap=2.0):
    total, count = 0.0, 0
    for row, own, others in contrasts(rows):
        group = [own, *others]
        mean = sum(group) / len(group)
        advantage = own - mean
        if scale == "group" and others:
            advantage /= sqrt(sum((u - mean) ** 2 for u in group) / (len(group) - 1)) + 1e-4
        tokens = len(row.r) if units == "trajectory" else 1
        total = total + sum(by_token(row, advantage, clip_low, clip_high, importance_cap)) / tokens
        count += 1 if units == "trajectory" else len(row.r)
    return total, count


def rloo(rows, clip_low=0.2, clip_high=0.2, units="trajectory", importance_cap=2.0):
    total, count = 0.0, 0
    for row, own, others in contrasts(rows):
        advantage = own - sum(others) / len(others) if others else 0.0
        if units == "action":
            total, count = (
                total + sum(by_token(row, advantage, clip_low, clip_high, importance_cap)),
                count + len(row.r),
            )
            continue
        rho = torch.exp(sum(row.l[t] - row.v[t] - row.proximal[t] for t in row.actions))
        weight = min(exp(sum(row.proximal) - sum(row.behaviour)), importance_cap)
        total = total - weight * min(rho * advantage, min(max(rho, 1 - clip_low), 1 + clip_high) * advantage)
        count += 1
    return total, count


def oapl(rows, group_beta=None):
    temperature, total = group_beta or BETA, 0.0
    acting = [row for row in rows if row.r]
    for row in acting:
        weights = [exp(other.total_reward() / temperature) for other in acting if other.group == row.group]
        value = temperature * log(sum(weights) / len(weights))
        total = total + (row.total_reward() - value - BETA * row.total_ratio()) ** 2
    return total, len(acting)


def _both(name, **options):
    return partial(getattr(losses, name), beta=BETA, **options), partial(globals()[name], **options)


GROUP_GRADIENTS = {
    "grpo": _both("grpo"),
    "grpo-wide": _both("grpo", clip_low=0.4, clip_high=1.5, scale="none", importance_cap=1.1),
    "grpo-whole": _both("grpo", units="trajectory", clip_high=0.28),
    "rloo": _both("rloo"),
    "rloo-wide": _both("rloo", clip_low=0.5, clip_high=3.0, importance_cap=1.2),
    "oapl": _both("oapl"),
    "oapl-own": _both("oapl", group_beta=0.3),
    "rloo-tokens": _both("rloo", units="action", clip_high=0.3, importance_cap=1.1),
}
"""Name -> the loss and its naive twin."""
