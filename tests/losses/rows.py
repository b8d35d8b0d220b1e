"""The rows of a batch as plain numbers, of which naive loops compute losses."""

from dataclasses import dataclass
from typing import Any

BETA, Z = 0.7, 0.4


@dataclass
class Row:
    """One trajectory's numbers as Python lists: rewards, logits, log-partitions, values; which prompt it answers."""

    r: list[Any]
    l: list[Any]  # noqa: E741
    v: list[Any]
    value: list[Any]
    l0: list[Any]
    v0: list[Any]
    index: list[int]
    group: int
    quantile: Any = None
    kl: Any = None
    proximal: Any = None
    behaviour: Any = None

    @property
    def actions(self):
        return range(len(self.r))

    def log_ratio(self, t):
        return (self.l[t] - self.v[t]) - (self.l0[t] - self.v0[t])

    def shift(self, t):
        return self.v[t] - self.v0[t] if t < len(self.r) else 0.0

    def return_to_go(self, t):
        return sum(self.r[k] - BETA * self.log_ratio(k) for k in self.actions if k >= t)

    def total_ratio(self):
        return sum((self.log_ratio(t) for t in self.actions), 0.0)

    def total_reward(self):
        return sum((float(r) for r in self.r), 0.0)

    def step(self, t):
        return self.r[t] + BETA * self.shift(t + 1) - BETA * (self.l[t] - self.l0[t])


def rows_of(batch, policy, reference):
    """The rows of a batch without their padding."""
    rows = []
    for b, length in enumerate(int(mask.sum()) for mask in batch.action_mask):
        ours = (policy.logit, policy.log_partition, policy.value)
        sources = (batch.rewards, *ours, reference.logit, reference.log_partition)
        numbers = [[source[b, t] for t in range(length)] for source in sources]
        index = [int(batch.action_index[b, t]) for t in range(length)]
        quantile = None if batch.quantile is None else batch.quantile[b]
        kl = None if policy.kl is None else [policy.kl[b, t] for t in range(length)]
        acting = [x if x is None else [float(x[b, t]) for t in range(length)] for x in _of_sampling(batch)]
        rows.append(Row(*numbers, index, int(batch.group[b]), quantile, kl, *acting))
    return rows


def _of_sampling(batch):
    """Log-probabilities under the policy when the batch came to be trained on, and under what it was sampled from."""
    return None if batch.proximal is None else batch.proximal.logp, batch.behaviour_logp
