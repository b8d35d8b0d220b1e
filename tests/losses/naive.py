"""The losses once more, as double loops over the papers' formulas; and random ragged batches to run them on."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from shiqrun import losses
from shiqrun.types import ActionScores, Trajectories

BETA = 0.7
LENGTHS = (4, 1, 0, 7, 2)


@dataclass
class Row:
    """One trajectory's numbers as Python lists: rewards, logits and log-partitions of policy and reference."""

    r: list[Any]
    l: list[Any]  # noqa: E741
    v: list[Any]
    l0: list[Any]
    v0: list[Any]
    index: list[int]

    @property
    def actions(self):
        return range(len(self.r))

    def log_ratio(self, t):
        return (self.l[t] - self.v[t]) - (self.l0[t] - self.v0[t])

    def shift(self, t):
        return self.v[t] - self.v0[t] if t < len(self.r) else 0.0

    def return_to_go(self, t):
        return sum(self.r[k] - BETA * self.log_ratio(k) for k in self.actions if k >= t)

    def step(self, t):
        return self.r[t] + BETA * self.shift(t + 1) - BETA * (self.l[t] - self.l0[t])


def rows_of(batch, policy, reference):
    """The rows of a batch without their padding."""
    rows = []
    for b, length in enumerate(int(mask.sum()) for mask in batch.action_mask):
        sources = (policy.logit, policy.log_partition, reference.logit, reference.log_partition)
        numbers = [[source[b, t] for t in range(length)] for source in (batch.rewards, *sources)]
        rows.append(Row(*numbers, [int(batch.action_index[b, t]) for t in range(length)]))
    return rows


def sft(rows):
    return sum((row.v[t] - row.l[t] for row in rows for t in row.actions), 0.0), _actions(rows)


def shiq(rows, lam=1.0):
    """lam = 1 from the definition of the path residual, the rest from sums of step residuals."""
    total = 0.0
    for row in rows:
        for t in row.actions:
            if lam == 1:
                delta = row.return_to_go(t) - BETA * row.shift(t)
            else:
                delta = sum(lam ** (k - t) * row.step(k) for k in row.actions if k >= t)
            total = total + delta**2
    return total, _actions(rows)


def shiq_init(rows):
    squares = ((row.return_to_go(t) - BETA * row.v[t]) ** 2 for row in rows for t in row.actions)
    return sum(squares, 0.0), _actions(rows)


def shiq_ms(rows):
    return sum((row.step(t) ** 2 for row in rows for t in row.actions), 0.0), _actions(rows)


def shiq_tk(rows):
    total = 0.0
    for row in rows:
        for t in row.actions:
            if t == 0 or row.index[t] != row.index[t - 1] + 1:
                total = total + (row.return_to_go(t) - BETA * row.shift(t)) ** 2
    return total, sum(1 for row in rows if row.r)


def _actions(rows):
    return sum(len(row.r) for row in rows)


LAMBDAS = (0.0, 0.5, 0.9)
LOSSES = {
    "sft": (losses.sft, sft),
    "shiq": (partial(losses.shiq, beta=BETA), shiq),
    "shiq_init": (partial(losses.shiq_init, beta=BETA), shiq_init),
    "shiq_ms": (partial(losses.shiq_ms, beta=BETA), shiq_ms),
    "shiq_tk": (partial(losses.shiq_tk, beta=BETA), shiq_tk),
    **{f"shiq-{lam}": (partial(losses.shiq, beta=BETA, lam=lam), partial(shiq, lam=lam)) for lam in LAMBDAS},
}
"""Name -> the loss and its naive twin; `shiq-0.9` is shiq with lam 0.9."""


def ragged(lengths=LENGTHS, width=7, seed=0):
    """(batch, policy, reference): random float64 numbers, padding included; actions come in turns of random length."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width)
    between = torch.randint(1, 4, shape, generator=draw)  # 1: the same turn; more: after a reply
    batch = Trajectories(
        input_ids=torch.randint(0, 9, (len(lengths), 3 * width + 1), generator=draw),
        attention_mask=torch.ones(len(lengths), 3 * width + 1, dtype=torch.bool),
        action_index=between.cumsum(-1),
        action_mask=torch.arange(width) < torch.tensor(lengths)[:, None],
        rewards=torch.randn(shape, dtype=torch.float64, generator=draw),
        group=torch.arange(len(lengths)),
    )
    return batch, scores(shape, draw), scores(shape, draw)


def scores(shape, draw):
    """Random scores in which the log-partition exceeds the logit, as leaves that take a gradient."""
    logit, gap = torch.randn(2, *shape, dtype=torch.float64, generator=draw)
    return ActionScores(logit.requires_grad_(), (logit + gap.abs()).detach().requires_grad_())


def gradients(terms, policy):
    """d total / d (logit, log_partition), zeros where nothing arrives."""
    if not terms.total.requires_grad:
        return [torch.zeros_like(policy.logit)] * 2
    found = torch.autograd.grad(terms.total, (policy.logit, policy.log_partition), allow_unused=True)
    return [torch.zeros_like(policy.logit) if g is None else g for g in found]
