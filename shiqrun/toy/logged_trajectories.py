"""Logged trajectories are sampled from tabular policies and cut into mini-batches; each seed has its own generator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shiqrun.toy.learner import TableRows, table_rows
from shiqrun.toy.tabular_problems import TabularProblem


@dataclass(frozen=True)
class LoggedTrajectories:
    """Logged trajectories of several seeds form one tensor each; of two kinds, the first half is good, the second bad.

    Attributes:
        state: `[tables, n, A]` int64.
        action: `[tables, n, A]` int64.
        mask: `[tables, n, A]` bool, True on actions.
        seeds: seed of each table, which also shuffles the mini-batches.
    """

    state: Tensor
    action: Tensor
    mask: Tensor
    seeds: Sequence[int]

    def __len__(self) -> int:
        return self.state.shape[1]

    def rewards(self, table: Tensor) -> Tensor:
        """Return the entries of a `[states, V]` table along the trajectories, `[tables, n, A]`, 0 in padding."""
        return table[self.state, self.action].masked_fill(~self.mask, 0)


def sample_trajectories(
    problem: TabularProblem, policies: Sequence[Tensor], number: int, seeds: Sequence[int]
) -> LoggedTrajectories:
    """Sample `number` trajectories of each policy, log-probabilities `[horizon, states, V]`, for each seed."""
    drawn = [
        [_sample_policy(problem, policy, number, _rng(seed, k)) for k, policy in enumerate(policies)] for seed in seeds
    ]
    parts = [[np.concatenate([kind[part] for kind in kinds]) for kinds in drawn] for part in range(3)]
    state, action, mask = (torch.from_numpy(np.stack(part)) for part in parts)
    return LoggedTrajectories(state, action, mask, seeds)


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _sample_policy(
    problem: TabularProblem, logp: Tensor, number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (state, action, mask) of sampled trajectories, each `[number, horizon]`."""
    cumulative = logp.exp().cumsum(-1).numpy()
    next_state, ends = problem.next_state.numpy(), problem.ends.numpy()
    state, alive = np.zeros(number, np.int64), np.ones(number, bool)
    columns = []
    for step in range(problem.horizon):
        chance = rng.random(number)[:, None]
        action = np.minimum((chance > cumulative[step][state]).sum(-1), cumulative.shape[-1] - 1)
        columns.append((state, action, alive))
        alive = alive & ~ends[state, action]
        state = np.where(alive, next_state[state, action], 0)
    state, action, mask = (np.stack(column, 1) for column in zip(*columns, strict=True))
    return state, action, mask


def minibatches(
    data: LoggedTrajectories, rewards: Tensor, *, kind: Literal["single", "pair", "group"], batch: int, epochs: int
) -> Iterator[TableRows]:
    """Yield mini-batches of `batch` trajectories for each seed, every trajectory once an epoch, in a new order.

    A pair is the i-th good and the i-th bad trajectory, in neighbouring rows. A group is all trajectories of a step:
    they start in the same state, which is the prompt of these problems.

    Args:
        data: the trajectories.
        rewards: `[tables, n, A]`, reward units.
        kind: pairs and groups are compared with each other, single trajectories are not.
        batch: trajectories of a step and seed; even for pairs.
        epochs: passes over the data.
    """
    tables, size = len(data.seeds), 2 if kind == "pair" else 1
    entities = torch.arange(len(data)).view(size, -1).T  # trajectories of each pair, or each alone
    generators = [_rng(seed, 7) for seed in data.seeds]
    table = torch.arange(tables)[:, None]
    for _ in range(epochs):
        order = torch.from_numpy(np.stack([rng.permutation(len(entities)) for rng in generators]))
        for chosen in order.split(batch // size, dim=1):
            index = entities[chosen].flatten(1)  # [tables, trajectories]
            row_table = table.expand_as(index).flatten()
            group = torch.arange(index.numel()) // size if kind != "group" else row_table
            state, action, earned, mask = (
                x[table, index].flatten(0, 1) for x in (data.state, data.action, rewards, data.mask)
            )
            yield table_rows(row_table, state, action, earned, mask, group)
