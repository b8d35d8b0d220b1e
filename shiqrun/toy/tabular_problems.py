"""Tabular problems have deterministic transitions, so that backward induction gives the exact optimum and regret.

With v = 0 after the last step, and pi_ref the softmax of the reference's logits:

    v*(s) = beta log sum_a pi_ref(a|s) exp((r(s,a) + v*(s')) / beta)
    J(s)  = sum_a pi(a|s) (r(s,a) - beta D(s,a) + J(s')),    D = log pi - log pi_ref
    regret = v* - J = beta KL(pi || pi*)

All tensors are float64, all values in reward units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from shiqrun.types import Positive

UP, DOWN, LEFT, RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)
MOVES = (UP, DOWN, LEFT, RIGHT)


@dataclass(frozen=True)
class TabularProblem:
    """A tabular problem is an episode from state 0 of at most `horizon` actions, with a reference policy.

    Attributes:
        next_state: `[states, V]` int64.
        reward: `[states, V]`, reward units.
        ends: `[states, V]` bool, True where the action ends the episode.
        reference: `[states, V]`, logits of the reference.
        horizon: largest number of actions in an episode.
        events: name to `[states, V]`, 1.0 where the action makes the event happen; at most once an episode.
    """

    next_state: Tensor
    reward: Tensor
    ends: Tensor
    reference: Tensor
    horizon: int
    events: Mapping[str, Tensor] = field(default_factory=dict)

    def optimum(self, beta: Positive) -> tuple[float, Tensor]:
        """Return v* at the start and log pi* `[horizon, states, V]`, the optimal policy, which knows the time left."""
        value = torch.zeros(len(self.reward), dtype=torch.float64)
        policy: list[Tensor] = []
        for _ in range(self.horizon):
            exponent = self.reference.log_softmax(-1) + (self.reward + self._following(value)) / beta
            partition = exponent.logsumexp(-1)
            policy.insert(0, exponent - partition[:, None])
            value = beta * partition
        return value[0].item(), torch.stack(policy)

    def expectation(self, logp: Tensor | Sequence[Tensor], payoff: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the expected sum of payoffs, E_pi sum_t payoff(s_t, a_t), from the start, `[...]`.

        `logp` and `payoff` are `[..., states, V]`, or sequences of `horizon` such tensors if they depend on the time.
        """
        value = torch.zeros(len(self.reward), dtype=torch.float64)
        for step in reversed(range(self.horizon)):
            p = (logp if isinstance(logp, Tensor) else logp[step]).exp()
            earned = payoff if isinstance(payoff, Tensor) else payoff[step]
            value = (p * (earned + self._following(value))).sum(-1)
        return value[..., 0]

    def regularised_return(self, logp: Tensor, beta: Positive) -> Tensor:
        """Return E_pi[sum_t r_t - beta D_t], the KL-regularised return, `[...]`, of policies `[..., states, V]`.

        The policies do not know the time.
        """
        return self.expectation(logp, self.reward - beta * (logp - self.reference.log_softmax(-1)))

    def regret(self, logp: Tensor, beta: Positive) -> Tensor:
        """Return the regret v* - E_pi[sum_t r_t - beta D_t], `[...]`, at least 0."""
        return self.optimum(beta)[0] - self.regularised_return(logp, beta)

    def _following(self, value: Tensor) -> Tensor:
        """Return the value of the next state, `[..., states, V]`, 0 where the action ends the episode."""
        return value[..., self.next_state].masked_fill(self.ends, 0)


def bandit(rewards: Sequence[float]) -> TabularProblem:
    """Return a bandit: one state, one action, and the uniform reference with logits 0 (so v_ref = log V is not 0)."""
    shape = (1, len(rewards))
    return TabularProblem(
        next_state=torch.zeros(shape, dtype=torch.int64),
        reward=torch.tensor([list(rewards)], dtype=torch.float64),
        ends=torch.ones(shape, dtype=torch.bool),
        reference=torch.zeros(shape, dtype=torch.float64),
        horizon=1,
    )


def grid(
    *,
    size: int,
    horizon: int,
    step_reward: float,
    goal_reward: float,
    treasure_reward: float,
) -> TabularProblem:
    """Return a grid: a walk from top left to bottom right, with a treasure in the top right corner.

    A state is cell + size^2 * (treasure taken). A move into a wall does not move. The reference is uniform.
    """
    cells, goal, treasure = size * size, size * size - 1, size - 1
    next_state = torch.zeros(2 * cells, len(MOVES), dtype=torch.int64)
    at_goal, at_treasure = torch.zeros(2, 2 * cells, len(MOVES), dtype=torch.float64)
    for state in range(2 * cells):
        taken, cell = divmod(state, cells)
        for move, (down, right) in enumerate(MOVES):
            row = min(max(cell // size + down, 0), size - 1)
            column = min(max(cell % size + right, 0), size - 1)
            reached = row * size + column
            found = not taken and reached == treasure
            next_state[state, move] = reached + cells * (taken or found)
            at_goal[state, move], at_treasure[state, move] = reached == goal, found
    return TabularProblem(
        next_state=next_state,
        reward=step_reward + goal_reward * at_goal + treasure_reward * at_treasure,
        ends=at_goal.bool(),
        reference=torch.zeros_like(at_goal),
        horizon=horizon,
        events={"goal": at_goal, "treasure": at_treasure},
    )


def lock(*, length: int, actions: int, total_reward: float, dense: bool) -> TabularProblem:
    """Return a lock: `length` decisions, whose right action is 0; any other action ends the episode without reward.

    A dense lock pays `total_reward` in equal parts for every right action, a sparse one all of it for the last.
    """
    shape = (length, actions)
    position = torch.arange(length)
    ends = torch.ones(shape, dtype=torch.bool)
    ends[:-1, 0] = False
    reward, opened = torch.zeros(2, *shape, dtype=torch.float64)
    reward[:, 0] = total_reward / length if dense else total_reward * (position == length - 1)
    opened[-1, 0] = 1.0
    return TabularProblem(
        next_state=(position + 1).clamp(max=length - 1)[:, None].expand(shape).contiguous(),
        reward=reward,
        ends=ends,
        reference=torch.zeros(shape, dtype=torch.float64),
        horizon=length,
        events={"goal": opened},
    )


def with_log_partition(problem: TabularProblem, level: float) -> TabularProblem:
    """Return the problem with the reference's log-partition at `level` nats in every state; its policy is the same."""
    return replace(problem, reference=problem.reference.log_softmax(-1) + level)
