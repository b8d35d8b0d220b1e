from dataclasses import replace

import pytest
import torch

from shiqrun.toy import study_methods
from shiqrun.toy.grid_study import sample_good_and_bad
from shiqrun.toy.learner import Learner, table_rows
from shiqrun.toy.logged_trajectories import LoggedTrajectories, minibatches, sample_trajectories
from shiqrun.toy.tabular_problems import grid, lock

BETA = 0.5
METHODS = [
    study_methods.shiq(BETA),
    study_methods.shiq(BETA, lam=0.9),
    study_methods.shiq_ms(BETA),
    study_methods.shiq_tk(BETA),
    study_methods.shiq_init(BETA),
    study_methods.direct(BETA),
    study_methods.soft_q(BETA),
    study_methods.copg(BETA),
    study_methods.dpo(BETA),
    study_methods.dro(BETA),
    study_methods.dro_group_mean(BETA),
    study_methods.dro_v(BETA),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=[m.name for m in METHODS])


@pytest.fixture(scope="module")
def problem():
    return grid(size=3, horizon=8, step_reward=-0.5, goal_reward=2.0, treasure_reward=1.0)


@pytest.fixture(scope="module")
def data(problem):
    return sample_good_and_bad(problem, BETA, 12, seeds=range(3))


def alone(data: LoggedTrajectories, table: int) -> LoggedTrajectories:
    one = slice(table, table + 1)
    return LoggedTrajectories(data.state[one], data.action[one], data.mask[one], data.seeds[table : table + 1])


def learner(method, problem, tables):
    torch.manual_seed(0)
    noise = torch.randn_like(problem.reference)
    return Learner(method, problem.reference + noise, tables=tables, learning_rate=0.1, value_ratio=2.0)


def trained(method, problem, data):
    student = learner(method, problem, len(data.seeds))
    rewards = data.rewards(problem.reward)
    for rows in minibatches(data, rewards, kind=method.rows, batch=6, epochs=2):
        student.update(rows)
    return student


@every_method
def test_all_seeds_at_once_is_one_seed_at_a_time(method, problem, data):
    together = trained(method, problem, data)
    for table in range(3):
        by_itself = trained(method, problem, alone(data, table))
        torch.testing.assert_close(together.logits[table], by_itself.logits[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(together.value[table], by_itself.value[0], rtol=0, atol=1e-9)


def test_the_seeds_of_that_comparison_drop_different_numbers_of_ties(problem, data):
    returns = data.rewards(problem.reward).sum(-1).view(3, 2, 12)
    ties = (returns[:, 0] - returns[:, 1]).abs().lt(1e-9).sum(-1).tolist()
    assert len(set(ties)) > 1


@every_method
def test_a_row_that_counts_three_times_is_three_rows(method, problem, data):
    rewards = data.rewards(problem.reward)
    rows = next(minibatches(data, rewards, kind=method.rows, batch=6, epochs=1))
    once, thrice = learner(method, problem, 3), learner(method, problem, 3)
    size = {"single": 1, "pair": 2, "group": 6}[method.rows]
    first = (torch.arange(18) % 6 < size) & (rows.table != 1)  # the first unit of two of the seeds
    once.update(replace(rows, times=torch.where(first, 3.0, 1.0).double()))
    index = torch.cat([torch.arange(18), *[first.nonzero().squeeze(-1)] * 2])
    copies = [rows.batch.group[first] + 100 * k for k in (1, 2)]
    tensors = (rows.table, rows.state, rows.action, rows.batch.rewards, rows.batch.action_mask)
    thrice.update(table_rows(*(x[index] for x in tensors), torch.cat([rows.batch.group, *copies])))
    torch.testing.assert_close(once.logits.grad, thrice.logits.grad)
    torch.testing.assert_close(once.value.grad, thrice.value.grad)
    torch.testing.assert_close(once.logits, thrice.logits)


@every_method
def test_a_seeds_gradient_is_the_mean_over_its_own_units(method, problem, data):
    rewards = data.rewards(problem.reward)
    rows = next(minibatches(data, rewards, kind=method.rows, batch=6, epochs=1))
    student = learner(method, problem, 3)
    before = student.logits.detach().clone()
    student.update(rows)
    for table in range(3):
        mine = rows.table == table
        student.logits.data.copy_(before)
        student.logits.grad = None
        part = table_rows(
            *(x[mine] for x in (rows.table, rows.state, rows.action, rows.batch.rewards, rows.batch.action_mask)),
            rows.batch.group[mine],
        )
        student.value.data.zero_()
        terms = student.terms(part, torch.ones(6, dtype=torch.float64))
        (expected,) = torch.autograd.grad(terms.total / terms.count, student.logits)
        again = learner(method, problem, 3)
        again.update(rows)
        torch.testing.assert_close(again.logits.grad[table], expected[table])


def test_a_seed_whose_pairs_are_all_ties_stays_where_it_is(problem):
    optimum = problem.optimum(BETA)[1]
    data = sample_trajectories(problem, [optimum, optimum], 4, seeds=range(2))
    rewards = data.rewards(problem.reward)
    rewards[0] = 0
    student = learner(study_methods.dpo(BETA), problem, 2)
    before = student.logits.detach().clone()
    for rows in minibatches(data, rewards, kind="pair", batch=8, epochs=3):
        student.update(rows)
    assert torch.equal(student.logits[0], before[0])
    assert not torch.equal(student.logits[1], before[1])


def test_a_method_that_says_another_unit_is_found_out(problem, data):
    wrong = replace(study_methods.shiq(BETA), unit="trajectory")
    rows = next(minibatches(data, data.rewards(problem.reward), kind="single", batch=6, epochs=1))
    with pytest.raises(RuntimeError, match="ShiQ counted"):
        learner(wrong, problem, 3).update(rows)


@pytest.mark.parametrize("method", METHODS[:8] + METHODS[10:], ids=[m.name for m in METHODS[:8] + METHODS[10:]])
def test_with_data_on_every_action_the_consistent_methods_reach_the_optimum(method):
    problem = lock(length=3, actions=3, total_reward=2.0, dense=True)
    torch.manual_seed(1)
    problem = replace(problem, reference=torch.randn(3, 3, dtype=torch.float64))
    uniform = torch.zeros(3, 3, 3, dtype=torch.float64).log_softmax(-1)
    data = sample_trajectories(problem, [uniform, uniform], 60, seeds=range(2))
    student = Learner(method, problem.reference, tables=2, learning_rate=0.05, value_ratio=2.0)
    before = problem.regret(student.logp(), BETA)
    for rows in minibatches(data, data.rewards(problem.reward), kind=method.rows, batch=60, epochs=250):
        student.update(rows)
    after = problem.regret(student.logp(), BETA)
    assert before.min() > 0.1
    assert after.max() < 1e-3


@every_method
def test_every_method_starts_at_the_reference(method, problem):
    student = learner(method, problem, 2)
    expected = student.reference.log_softmax(-1).expand(2, -1, -1)
    torch.testing.assert_close(student.logp(), expected)


def test_logged_trajectories_follow_the_problem(problem, data):
    rewards = data.rewards(problem.reward)
    columns = (x.flatten(0, 1) for x in (data.state, data.action, data.mask, rewards))
    for state, action, mask, earned in zip(*columns, strict=True):
        here, alive = 0, True
        for s, a, there, r in zip(state.tolist(), action.tolist(), mask.tolist(), earned.tolist(), strict=True):
            assert there == alive
            if not alive:
                assert r == 0
                continue
            assert s == here
            assert r == problem.reward[s, a]
            here, alive = int(problem.next_state[s, a]), not problem.ends[s, a]


def test_sampled_frequencies_are_the_policys():
    problem = grid(size=3, horizon=4, step_reward=0.0, goal_reward=1.0, treasure_reward=1.0)
    policy = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log().expand(4, 18, 4)
    data = sample_trajectories(problem, [policy], 20_000, seeds=[0])
    share = torch.bincount(data.action[0, :, 0], minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), rtol=0, atol=0.015)  # four deviations


@pytest.mark.parametrize("kind", ["single", "pair", "group"])
def test_an_epoch_has_every_trajectory_once_and_pairs_good_with_bad(data, kind):
    number = torch.arange(24, dtype=torch.float64)[None, :, None].expand(3, 24, 8)
    seen = {table: [] for table in range(3)}
    for rows in minibatches(data, number, kind=kind, batch=6, epochs=1):
        for table, value in zip(rows.table.tolist(), rows.batch.rewards[:, 0].tolist(), strict=True):
            seen[table].append(int(value))
        if kind == "pair":
            good, bad = rows.batch.rewards[:, 0].view(-1, 2).unbind(-1)
            assert torch.equal(good + 12, bad)
            assert torch.equal(*rows.batch.group.view(-1, 2).unbind(-1))
        assert len(rows.batch.group.unique()) == {"single": 18, "pair": 9, "group": 3}[kind]
    assert all(sorted(numbers) == list(range(24)) for numbers in seen.values())
    assert seen[0] != seen[1]
