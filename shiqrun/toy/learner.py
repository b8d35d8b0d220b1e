"""A table of logits for each seed, and one optimiser step on it by a loss of `shiqrun.losses`.

The rows of all seeds are one batch and the loss is the function that training calls. It returns a sum over units, so
the gradients of different seeds do not mix; each seed's gradient is divided by the seed's own number of units. The
division is done at the scores, which keep their value and whose gradient is scaled row by row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shiqrun.types import ActionScores, LossTerms, Trajectories

Unit = Literal["action", "trajectory", "pair", "decided pair"]
"""What a loss counts; a decided pair is one whose two returns differ (DPO drops the others)."""


@dataclass(frozen=True)
class Method:
    """A loss bound to its settings, and what the study must know to call it.

    Attributes:
        name: in tables and figures.
        loss: `(batch, policy, reference) -> LossTerms`; soft-Q also takes `soft_value`.
        unit: what the loss counts. Checked at every step against `LossTerms.count`.
        rows: what it learns from: single trajectories, pairs, or groups of more.
        value: True if it has a table of values as well.
        soft_beta: of soft-Q, whose policy is pi ∝ pi_ref exp(l / beta); None where the policy is softmax(l).
        rewards: the name of the rewards that it sees, where a study has several.
    """

    name: str
    loss: Callable[..., LossTerms]
    unit: Unit
    rows: Literal["single", "pair", "group"] = "single"
    value: bool = False
    soft_beta: float | None = None
    rewards: str = "full"


@dataclass(frozen=True)
class Rows:
    """Trajectories as places in tables.

    Attributes:
        batch: what the loss sees. Rows of different seeds have different groups; a pair's rows are neighbours.
        table: `[B]` int64, the seed's table.
        state: `[B, A]` int64.
        action: `[B, A]` int64.
        times: `[B]`, how often the row is in the optimiser step; equal for the rows of a pair or group.
    """

    batch: Trajectories
    table: Tensor
    state: Tensor
    action: Tensor
    times: Tensor


def rows_of(table: Tensor, state: Tensor, action: Tensor, rewards: Tensor, mask: Tensor, group: Tensor) -> Rows:
    """Rows that count once each; the batch's tokens are the actions behind one token that starts them."""
    count, length = state.shape
    batch = Trajectories(
        input_ids=torch.zeros(count, length + 1, dtype=torch.int64),
        attention_mask=torch.ones(count, length + 1, dtype=torch.bool),
        action_index=torch.arange(1, length + 1).expand(count, length),
        action_mask=mask,
        rewards=rewards,
        group=group,
    )
    return Rows(batch, table, state, action, torch.ones(count, dtype=rewards.dtype))


def units(batch: Trajectories, unit: Unit) -> Tensor:
    """How many units of a loss each row brings, `[B]`: actions, 1, or half a pair."""
    there = batch.action_mask.any(-1).to(batch.rewards.dtype)
    if unit == "action":
        return batch.action_mask.sum(-1).to(there.dtype)
    if unit == "trajectory":
        return there
    if unit == "pair":
        return there / 2
    rewards = batch.rewards.masked_fill(~batch.action_mask, 0)
    returns, sizes = rewards.sum(-1).view(-1, 2), rewards.abs().sum(-1).view(-1, 2)
    differ = (returns[:, 0] - returns[:, 1]).abs() > 1e-6 * sizes.sum(-1)  # what dpo takes for rounding
    return differ.repeat_interleave(2) * there / 2


class Learner:
    """Tables of logits `[tables, states, V]` under Adam, one table a seed; starts at the reference.

    Args:
        method: what to minimise.
        reference: the reference's logits, `[states, V]` or one for each table.
        tables: number of seeds.
        learning_rate: of Adam.
        value_ratio: learning rate of the table of values, relative to that of the logits.

    Attributes:
        logits: the tables; `logits.grad` is the gradient of the last update, each seed's a mean over its units.
    """

    def __init__(
        self, method: Method, reference: Tensor, *, tables: int, learning_rate: float, value_ratio: float = 1.0
    ) -> None:
        self.method = method
        self.reference = reference
        start = torch.zeros_like(reference) if method.soft_beta else reference
        self.logits = start.expand(tables, *start.shape[-2:]).clone().requires_grad_()
        self.value = torch.zeros(self.logits.shape[:2], dtype=start.dtype, requires_grad=method.value)
        groups = [{"params": [self.logits]}]
        if method.value:
            groups.append({"params": [self.value], "lr": learning_rate * value_ratio})  # type: ignore[dict-item]
        self.optimiser = torch.optim.Adam(groups, lr=learning_rate, fused=True)

    def update(self, rows: Rows) -> None:
        """One optimiser step.

        Raises:
            RuntimeError: the loss counted other units than its method says.
        """
        self.optimiser.zero_grad()
        brought = units(rows.batch, self.method.unit)
        terms = self.terms(rows, self._weights(rows, brought))
        if terms.count != brought.sum():
            raise RuntimeError(f"{self.method.name} counted {terms.count:g} units, expected {brought.sum():g}")
        terms.total.backward()
        self.optimiser.step()

    def _weights(self, rows: Rows, brought: Tensor) -> Tensor:
        """times / (the units of the row's table), `[B]`; 0 for a table whose pairs are all ties."""
        zeros = torch.zeros(len(self.logits), dtype=brought.dtype)
        counts = zeros.index_add(0, rows.table, rows.times * brought)[rows.table]
        return (rows.times / counts).masked_fill(counts == 0, 0)

    def terms(self, rows: Rows, weight: Tensor) -> LossTerms:
        """What the loss says of the rows, the gradient of each row multiplied by its weight."""
        policy = self._scores(self.logits, rows, weight[:, None])
        reference = rows.batch.reference or self.reference_scores(rows)
        if self.method.soft_beta is None:
            return self.method.loss(rows.batch, policy, reference)
        beta = self.method.soft_beta
        soft_value = beta * (self.reference.log_softmax(-1) + self.logits / beta).logsumexp(-1)
        value = _scaled(soft_value[rows.table[:, None], rows.state], weight[:, None])
        return self.method.loss(rows.batch, policy, reference, soft_value=value)

    def logp(self) -> Tensor:
        """Log-probabilities of the policies, `[tables, states, V]`."""
        logits = self.logits.detach()
        if self.method.soft_beta is not None:
            logits = self.reference + logits / self.method.soft_beta
        return logits.log_softmax(-1)

    def reference_scores(self, rows: Rows) -> ActionScores:
        """The reference's scores of the rows; with them in `batch.reference`, `terms` need not look them up."""
        return _gathered(self.reference.expand_as(self.logits), rows)

    def _scores(self, logits: Tensor, rows: Rows, weight: Tensor) -> ActionScores:
        scores = _gathered(logits, rows)
        value = _scaled(self.value[rows.table[:, None], rows.state], weight) if self.method.value else None
        return ActionScores(_scaled(scores.logit, weight), _scaled(scores.log_partition, weight), value)


def _gathered(logits: Tensor, rows: Rows) -> ActionScores:
    table = rows.table[:, None]
    return ActionScores(logits[table, rows.state, rows.action], logits.logsumexp(-1)[table, rows.state])


def _scaled(x: Tensor, weight: Tensor) -> Tensor:
    """x to the last bit, with the gradient of weight * x."""
    return x.detach() + weight * (x - x.detach())
