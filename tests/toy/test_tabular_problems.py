from dataclasses import replace
from itertools import product

import pytest
import torch

from shiqrun.toy.tabular_problems import bandit, grid, lock, with_log_partition

BETA = 0.7


def small(name):
    problem = {
        "bandit": lambda: bandit([2.5, 2.0, 1.0]),
        "grid": lambda: grid(size=2, horizon=5, step_reward=-0.1, goal_reward=3.0, treasure_reward=4.0),
        "lock": lambda: lock(length=4, actions=3, total_reward=2.0, dense=True),
    }[name]()
    torch.manual_seed(0)
    noise = torch.randn_like(problem.reference)
    return replace(problem, reference=noise, reward=problem.reward + torch.rand_like(noise))


def episodes(problem):
    """Every episode of the problem, as a list of (state, action)."""
    for actions in product(range(problem.reward.shape[1]), repeat=problem.horizon):
        state, steps = 0, []
        for action in actions:
            steps.append((state, action))
            if problem.ends[state, action]:
                break
            state = int(problem.next_state[state, action])
        yield tuple(steps)


def enumerated(problem):
    """Episode -> (probability under the reference, return)."""
    logp = problem.reference.log_softmax(-1)
    return {
        steps: (sum(logp[s, a] for s, a in steps).exp(), sum(problem.reward[s, a] for s, a in steps))
        for steps in set(episodes(problem))
    }


@pytest.mark.parametrize("name", ["bandit", "grid", "lock"])
def test_the_optimum_is_that_of_enumerating_every_episode(name):
    problem = small(name)
    every = enumerated(problem)
    partition = sum(p * (r / BETA).exp() for p, r in every.values())
    value, policy = problem.optimum(BETA)
    assert value == pytest.approx((BETA * partition.log()).item(), abs=1e-12)
    for steps, (p, r) in every.items():
        logp = sum(policy[t, s, a] for t, (s, a) in enumerate(steps))
        assert logp.item() == pytest.approx((p.log() + r / BETA - partition.log()).item(), abs=1e-10)


@pytest.mark.parametrize("name", ["bandit", "grid", "lock"])
def test_regret_is_beta_times_the_divergence_from_the_optimum(name):
    problem = small(name)
    every = enumerated(problem)
    partition = sum(p * (r / BETA).exp() for p, r in every.values())
    policies = torch.randn(3, *problem.reference.shape, dtype=torch.float64).log_softmax(-1)
    expected = []
    for logp in policies:
        divergence = 0.0
        for steps, (p, r) in every.items():
            mine = sum(logp[s, a] for s, a in steps)
            divergence += mine.exp() * (mine - (p.log() + r / BETA - partition.log()))
        expected.append(BETA * divergence)
    torch.testing.assert_close(problem.regret(policies, BETA), torch.stack(expected))


def test_the_optimum_has_no_regret_and_earns_its_own_value():
    problem = small("grid")
    value, policy = problem.optimum(BETA)
    payoff = [problem.reward - BETA * (logp - problem.reference.log_softmax(-1)) for logp in policy]
    assert problem.expectation(list(policy), payoff).item() == pytest.approx(value, abs=1e-12)


def walk(problem, moves):
    """(rewards, whether the last move ended the episode) of moves UDLR."""
    state, rewards, ended = 0, [], False
    for move in moves:
        assert not ended
        action = "UDLR".index(move)
        rewards.append(problem.reward[state, action].item())
        ended = bool(problem.ends[state, action])
        state = int(problem.next_state[state, action])
    return rewards, ended


def test_the_grid_pays_the_treasure_once_and_ends_at_the_goal():
    problem = grid(size=5, horizon=50, step_reward=-0.1, goal_reward=3.0, treasure_reward=4.0)
    rewards, ended = walk(problem, "RRRRRLRDDDD")
    assert rewards == pytest.approx([-0.1] * 3 + [3.9] + [-0.1] * 6 + [2.9])
    assert ended
    rewards, ended = walk(problem, "DDDDRRRR")
    assert (sum(rewards), ended) == (pytest.approx(3 - 0.8), True)
    rewards, ended = walk(problem, "ULUL")
    assert (rewards, ended) == ([-0.1] * 4, False)


def test_a_lock_opens_by_its_one_sequence():
    sparse = lock(length=3, actions=2, total_reward=6.0, dense=False)
    dense = lock(length=3, actions=2, total_reward=6.0, dense=True)
    path = [(0, 0), (1, 0), (2, 0)]
    assert [sparse.reward[s, a].item() for s, a in path] == [0, 0, 6]
    assert [dense.reward[s, a].item() for s, a in path] == [2, 2, 2]
    assert sparse.ends.tolist() == [[False, True], [False, True], [True, True]]
    uniform = torch.zeros(1, 3, 2, dtype=torch.float64).log_softmax(-1)
    assert sparse.expectation(uniform, sparse.events["goal"]).item() == pytest.approx(1 / 8)


def test_another_level_of_the_reference_is_the_same_policy():
    problem = small("grid")
    shifted = with_log_partition(problem, 15.0)
    torch.testing.assert_close(shifted.reference.logsumexp(-1), torch.full_like(shifted.reference[:, 0], 15.0))
    assert shifted.optimum(BETA)[0] == pytest.approx(problem.optimum(BETA)[0])


@pytest.mark.parametrize(("goal", "treasure"), [(7.0, 0.0), (3.0, 4.0)])
def test_a_policy_that_does_not_know_the_time_can_come_within_3_thousandths_of_the_grids_optimum(goal, treasure):
    problem = grid(size=5, horizon=50, step_reward=-0.1, goal_reward=goal, treasure_reward=treasure)
    first_step = problem.optimum(0.5)[1][:1]
    assert 0 < problem.regret(first_step, 0.5).item() < 0.003
