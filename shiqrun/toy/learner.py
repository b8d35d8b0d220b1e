"""The learner trains tables of logits, one for each seed, with the functions of `shiqrun.losses` that training calls.

The rows of all seeds form one batch. A loss returns a sum over units, so the gradients of different seeds do not mix.
Each seed's gradient is divided by the seed's own number of units, at the scores: they keep their value, and their
gradient is scaled row by row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shiqrun.types import ActionScores, LossTerms, Trajectories

Unit = Literal["action", "trajectory", "pair", "decided pair"]
"""The unit that a loss counts; a decided pair is one whose two returns differ (DPO drops the others)."""


@dataclass(frozen=True)
class StudyMethod:
    """A method of a study is a loss with its settings, and what the study must know to call it.

    Attributes:
        name: name in tables and figures.
        loss: `(batch, policy, reference) -> LossTerms`; soft-Q also takes `soft_value`.
        unit: the unit that the loss counts, checked at every step against `LossTerms.count`.
        rows: whether it learns from single trajectories, pairs, or larger groups.
        value: whether it has a table of values besides that of logits.
        soft_beta: beta of soft-Q, whose policy is pi ∝ pi_ref exp(l / beta); None where the policy is softmax(l).
        rewards: name of the rewards that it sees, where a study has several.
    """

    name: str
    loss: Callable[..., LossTerms]
    unit: Unit
    rows: Literal["single", "pair", "group"] = "single"
    value: bool = False
    soft_beta: float | None = None
    rewards: str = "full"


@dataclass(frozen=True)
class TableRows:
    """Table rows are trajectories of a batch with the places of their actions in the tables.

    Attributes:
        batch: what the loss sees. Rows of different seeds have different groups; a pair's rows are neighbours.
        table: `[B]` int64, index of the seed's table.
        state: `[B, A]` int64.
        action: `[B, A]` int64.
        times: `[B]`, how often the row is in the optimiser step; equal for the rows of a pair or group.
    """

    batch: Trajectories
    table: Tensor
    state: Tensor
    action: Tensor
    times: Tensor


def table_rows(table: Tensor, state: Tensor, action: Tensor, rewards: Tensor, mask: Tensor, group: Tensor) -> TableRows:
    """Return table rows that count once each; a row of the batch has one prompt token and then the actions.

    Args:
        table: `[B]` int64.
        state: `[B, A]` int64.
        action: `[B, A]` int64.
        rewards: `[B, A]`, reward units.
        mask: `[B, A]` bool, True on actions.
        group: `[B]` int64; rows with equal numbers answer the same prompt.
    """
    count, length = state.shape
    batch = Trajectories(
        input_ids=torch.zeros(count, length + 1, dtype=torch.int64),
        attention_mask=torch.ones(count, length + 1, dtype=torch.bool),
        action_index=torch.arange(1, length + 1).expand(count, length),
        action_mask=mask,
        rewards=rewards,
        group=group,
    )
    return TableRows(batch, table, state, action, torch.ones(count, dtype=rewards.dtype))


def units_per_row(batch: Trajectories, unit: Unit) -> Tensor:
    """Return the number of a loss's units in each row, `[B]`: its actions, 1, or half a pair."""
    there = batch.action_mask.any(-1).to(batch.rewards.dtype)
    if unit == "action":
        return batch.action_mask.sum(-1).to(there.dtype)
    if unit == "trajectory":
        return there
    if unit == "pair":
        return there / 2
    rewards = batch.rewards.masked_fill(~batch.action_mask, 0)
    returns, sizes = rewards.sum(-1).view(-1, 2), rewards.abs().sum(-1).view(-1, 2)
    differ = (returns[:, 0] - returns[:, 1]).abs() > 1e-6 * sizes.sum(-1)  # as `losses.dpo` decides a tie
    return differ.repeat_interleave(2) * there / 2


class Learner:
    """The learner holds the policies of all seeds as logits `[tables, states, V]`, which start at the reference.

    Args:
        method: its loss is minimised by Adam.
        reference: logits of the reference, `[states, V]` or one such table for each seed.
        tables: number of seeds.
        learning_rate: learning rate of Adam.
        value_ratio: learning rate of the table of values, relative to that of the logits.

    Attributes:
        logits: the tables; `logits.grad` is the gradient of the last update, for each seed a mean over its units.
    """

    def __init__(
        self, method: StudyMethod, reference: Tensor, *, tables: int, learning_rate: float, value_ratio: float = 1.0
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

    def update(self, rows: TableRows) -> None:
        """Make one optimiser step on the rows.

        Raises:
            RuntimeError: the loss counted another number of units than its method's `unit` gives.
        """
        self.optimiser.zero_grad()
        row_units = units_per_row(rows.batch, self.method.unit)
        terms = self.terms(rows, self._weights(rows, row_units))
        if terms.count != row_units.sum():
            raise RuntimeError(f"{self.method.name} counted {terms.count:g} units, expected {row_units.sum():g}")
        terms.total.backward()
        self.optimiser.step()

    def _weights(self, rows: TableRows, row_units: Tensor) -> Tensor:
        """Return each row's weight, `times` over its table's units, `[B]`; 0 for a table whose pairs are all ties."""
        zeros = torch.zeros(len(self.logits), dtype=row_units.dtype)
        counts = zeros.index_add(0, rows.table, rows.times * row_units)[rows.table]
        return (rows.times / counts).masked_fill(counts == 0, 0)

    def terms(self, rows: TableRows, weight: Tensor) -> LossTerms:
        """Return the loss of the rows, with the gradient of each row multiplied by its weight `[B]`."""
        policy = self._scores(self.logits, rows, weight[:, None])
        reference = rows.batch.reference or self.reference_scores(rows)
        if self.method.soft_beta is None:
            return self.method.loss(rows.batch, policy, reference)
        beta = self.method.soft_beta
        soft_value = beta * (self.reference.log_softmax(-1) + self.logits / beta).logsumexp(-1)
        value = _scale_gradient(soft_value[rows.table[:, None], rows.state], weight[:, None])
        return self.method.loss(rows.batch, policy, reference, soft_value=value)

    def logp(self) -> Tensor:
        """Return the log-probabilities of the policies, `[tables, states, V]`, nats."""
        logits = self.logits.detach()
        if self.method.soft_beta is not None:
            logits = self.reference + logits / self.method.soft_beta
        return logits.log_softmax(-1)

    def reference_scores(self, rows: TableRows) -> ActionScores:
        """Return the reference's scores of the rows; `terms` uses them where they are in `batch.reference`."""
        return _look_up_scores(self.reference.expand_as(self.logits), rows)

    def _scores(self, logits: Tensor, rows: TableRows, weight: Tensor) -> ActionScores:
        scores = _look_up_scores(logits, rows)
        value = _scale_gradient(self.value[rows.table[:, None], rows.state], weight) if self.method.value else None
        return ActionScores(_scale_gradient(scores.logit, weight), _scale_gradient(scores.log_partition, weight), value)


def _look_up_scores(logits: Tensor, rows: TableRows) -> ActionScores:
    table = rows.table[:, None]
    return ActionScores(logits[table, rows.state, rows.action], logits.logsumexp(-1)[table, rows.state])


def _scale_gradient(x: Tensor, weight: Tensor) -> Tensor:
    """Return x unchanged, but with the gradient of weight * x."""
    return x.detach() + weight * (x - x.detach())
