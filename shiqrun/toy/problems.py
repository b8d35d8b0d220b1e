"""Small problems with deterministic transitions, their exact optimum, and exact expectations, by backward induction.

With v = 0 after the last step, and pi_ref the softmax of the reference's logits:

    v*(s) = beta log sum_a pi_ref(a|s) exp((r(s,a) + v*(s')) / beta)
    J(s)  = sum_a pi(a|s) (r(s,a) - beta D(s,a) + J(s')),    D = log pi - log pi_ref
    regret = v* - J = beta KL(pi || pi*)

Everything is float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from shiqrun.types import Positive

UP, DOWN, LEFT, RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)
MOVES = (UP, DOWN, LEFT, RIGHT)


@dataclass(frozen=True)
class Problem:
    """An episodic problem that starts in state 0 and is cut after `horizon` actions.

    Attributes:
        next_state: `[states, V]` int64.
        reward: `[states, V]`, reward units.
        ends: `[states, V]` bool, True where the action ends the episode.
        reference: `[states, V]`, logits of the reference.
        horizon: actions of an episode at most.
        events: name -> `[states, V]`, 1.0 where the action makes the event happen; at most once an episode.
    """

    next_state: Tensor
    reward: Tensor
    ends: Tensor
    reference: Tensor
    horizon: int
    events: Mapping[str, Tensor] = field(default_factory=dict)

    def optimum(self, beta: Positive) -> tuple[float, Tensor]:
        """(v* at the start in reward units, log pi* `[horizon, states, V]`): the optimum knows the time left."""
        value = torch.zeros(len(self.reward), dtype=torch.float64)
        policy: list[Tensor] = []
        for _ in range(self.horizon):
            exponent = self.reference.log_softmax(-1) + (self.reward + self._following(value)) / beta
            partition = exponent.logsumexp(-1)
            policy.insert(0, exponent - partition[:, None])
            value = beta * partition
        return value[0].item(), torch.stack(policy)

    def expected(self, logp: Tensor | Sequence[Tensor], payoff: Tensor | Sequence[Tensor]) -> Tensor:
        """E_pi sum_t payoff(s_t, a_t) from the start, `[...]`.

        Both are `[..., states, V]`, or a sequence of `horizon` such tensors if they depend on the time.
        """
        value = torch.zeros(len(self.reward), dtype=torch.float64)
        for step in reversed(range(self.horizon)):
            p = (logp if isinstance(logp, Tensor) else logp[step]).exp()
            earned = payoff if isinstance(payoff, Tensor) else payoff[step]
            value = (p * (earned + self._following(value))).sum(-1)
        return value[..., 0]

    def regularised_return(self, logp: Tensor, beta: Positive) -> Tensor:
        """E_pi[sum_t r_t - beta D_t] of policies `[..., states, V]` that do not know the time, `[...]`."""
        return self.expected(logp, self.reward - beta * (logp - self.reference.log_softmax(-1)))

    def regret(self, logp: Tensor, beta: Positive) -> Tensor:
        """v* - E_pi[sum_t r_t - beta D_t], `[...]`, reward units, at least 0."""
        return self.optimum(beta)[0] - self.regularised_return(logp, beta)

    def _following(self, value: Tensor) -> Tensor:
        """Value of the next state, `[..., states, V]`, 0 where there is none."""
        return value[..., self.next_state].masked_fill(self.ends, 0)


def bandit(rewards: Sequence[float]) -> Problem:
    """One state, one action, and the uniform reference with logits 0 (so v_ref = log V is not 0)."""
    shape = (1, len(rewards))
    return Problem(
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
) -> Problem:
    """Walk from the top left to the bottom right of a square; the treasure is in the top right corner.

    State: cell + size^2 * (treasure taken). A move into a wall stays where it is. The reference is uniform.
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
    return Problem(
        next_state=next_state,
        reward=step_reward + goal_reward * at_goal + treasure_reward * at_treasure,
        ends=at_goal.bool(),
        reference=torch.zeros_like(at_goal),
        horizon=horizon,
        events={"goal": at_goal, "treasure": at_treasure},
    )


def lock(*, length: int, actions: int, total_reward: float, dense: bool) -> Problem:
    """A row of `length` decisions; action 0 goes on, any other ends the episode with nothing more.

    `total_reward` is earned by opening the lock: all of it by the last action, or in equal parts by every right one.
    """
    shape = (length, actions)
    position = torch.arange(length)
    ends = torch.ones(shape, dtype=torch.bool)
    ends[:-1, 0] = False
    reward, opened = torch.zeros(2, *shape, dtype=torch.float64)
    reward[:, 0] = total_reward / length if dense else total_reward * (position == length - 1)
    opened[-1, 0] = 1.0
    return Problem(
        next_state=(position + 1).clamp(max=length - 1)[:, None].expand(shape).contiguous(),
        reward=reward,
        ends=ends,
        reference=torch.zeros(shape, dtype=torch.float64),
        horizon=length,
        events={"goal": opened},
    )


def at_level(problem: Problem, level: float) -> Problem:
    """The same problem with the reference's log-partition at `level` nats in every state: only the logits differ."""
    return replace(problem, reference=problem.reference.log_softmax(-1) + level)
