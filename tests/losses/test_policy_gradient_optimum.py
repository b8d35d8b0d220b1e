"""PPO's gradient against the exact policy gradient of small trees, and the optimum that it reaches."""

from dataclasses import replace
from functools import partial
from math import exp, inf

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.types import ActionScores
from tests.losses.trees import Tree, kl
from tests.support.selection import rest_slow

BETA = 0.7
PPO = partial(losses.ppo, beta=BETA)


# ------------------------------------------------------------------ the policy gradient
def world(seed=0, horizon=3):
    """(tree, a reference's table, a policy's, values of its states); returns are several times beta apart."""
    tree = Tree(vocabulary=3, horizon=horizon, seed=seed)
    tree.reward = {path: 3 * reward for path, reward in tree.reward.items()}
    reference, table = tree.table(scale=1.0), tree.table(scale=1.0)
    return tree, reference, table, torch.randn(len(tree.states), dtype=torch.float64, generator=tree.random)


class Enumerated:
    """Every path of a tree once, what tables score along them, and its paths in given numbers."""

    def __init__(self, tree):
        self.tree, self.all = tree, tree.trajectories()
        visited = [tree.visited(path) for path in tree.paths]
        self.rows = torch.zeros_like(self.all.action_index)
        self.actions = torch.zeros_like(self.rows)
        for b, path in enumerate(visited):
            for t, (state, action) in enumerate(path):
                self.rows[b, t], self.actions[b, t] = tree.row[state], action

    def scores(self, table, value=None, chosen=slice(None)):
        rows = self.rows[chosen]
        return ActionScores(
            table[rows, self.actions[chosen]],
            table.logsumexp(-1)[rows],
            None if value is None else value[rows],
        )

    def batch(self, behaviour, chosen=slice(None)):
        names = ("input_ids", "attention_mask", "action_index", "action_mask", "rewards", "group")
        picked = {name: getattr(self.all, name)[chosen] for name in names}
        return replace(self.all, **picked, behaviour_logp=self.scores(behaviour, chosen=chosen).logp.detach())

    def probabilities(self, table):
        """Of every path, differentiable in the table."""
        return self.scores(table).logp.masked_fill(~self.all.action_mask, 0).sum(-1).exp()

    def objective(self, table, reference):
        """E_pi[sum_t r_t - beta D_t], differentiable in the table."""
        ratio = (self.scores(table).logp - self.scores(reference).logp).masked_fill(~self.all.action_mask, 0)
        rewards = self.all.rewards.masked_fill(~self.all.action_mask, 0)
        return (self.probabilities(table) * (rewards - BETA * ratio).sum(-1)).sum()

    def state_values(self, table, reference):
        """V^pi of the regularised objective at every state, by backward induction."""
        tree, value = self.tree, torch.zeros(len(self.tree.states), dtype=torch.float64)
        logp, logp_ref = table.log_softmax(-1).detach(), reference.log_softmax(-1)
        for state in sorted(tree.states, key=len, reverse=True):
            i = tree.row[state]
            for action in range(tree.vocabulary):
                after = (*state, action)
                following = value[tree.row[after]] if after in tree.row else 0.0
                earned = tree.reward[after] - BETA * (logp[i, action] - logp_ref[i, action])
                value[i] += logp[i, action].exp() * (earned + following)
        return value

    def expected_gradient(self, table, reference, value, behaviour, **options):
        """E_mu of the policy's gradient of a trajectory's loss, `[states, V]`."""
        table = table.clone().requires_grad_()
        total = 0.0
        for i, p in enumerate(self.probabilities(behaviour).tolist()):
            one = slice(i, i + 1)
            policy, frozen = self.scores(table, value, one), self.scores(reference, chosen=one)
            total = total + p * PPO(self.batch(behaviour, one), policy, frozen, **options).total
        return torch.autograd.grad(total, table)[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_policy_the_first_update_is_the_policy_gradient_whatever_the_values_are(seed):
    tree, reference, table, value = world(seed)
    paths = Enumerated(tree)
    leaf = table.clone().requires_grad_()
    (slope,) = torch.autograd.grad(paths.objective(leaf, reference), leaf)
    assert slope.norm() > 0.1
    assert_close(paths.expected_gradient(table, reference, value, table, gae_lam=1.0), -slope)


@pytest.mark.parametrize("gae_lam", [0.0, 0.5, 0.8])
def test_with_a_shorter_trace_it_is_so_with_the_policys_own_values_and_not_with_others(gae_lam):
    tree, reference, table, value = world()
    paths = Enumerated(tree)
    leaf = table.clone().requires_grad_()
    (slope,) = torch.autograd.grad(paths.objective(leaf, reference), leaf)
    right = paths.state_values(table, reference)
    assert float(right[tree.row[()]]) == pytest.approx(float(paths.objective(table, reference)))
    assert_close(paths.expected_gradient(table, reference, right, table, gae_lam=gae_lam), -slope)
    assert (
        paths.expected_gradient(table, reference, value, table, gae_lam=gae_lam) + slope
    ).norm() > 0.01 * slope.norm()


def test_with_weights_the_gradient_of_single_actions_is_on_policy_wherever_they_were_sampled():
    tree, reference, table, value = world(horizon=1)
    paths, behaviour = Enumerated(tree), tree.table(scale=1.0)
    leaf = table.clone().requires_grad_()
    (slope,) = torch.autograd.grad(paths.objective(leaf, reference), leaf)
    weighed = paths.expected_gradient(table, reference, value, behaviour, importance_cap=inf)
    assert_close(weighed, -slope)
    capped = paths.expected_gradient(table, reference, value, behaviour, importance_cap=0.5)
    assert (capped + slope).norm() > 0.1


def test_on_trajectories_weights_correct_the_action_and_leave_the_way_to_it_and_from_it_to_the_behaviour():
    """sum_s P_mu(s) sum_a grad pi(a|s) A_mu(s, a), with lambda = 1 and what the docstring says of w."""
    tree, reference, table, value = world()
    paths, behaviour = Enumerated(tree), tree.table(scale=1.0)
    logp, logp_ref, logp_mu = (x.log_softmax(-1) for x in (table, reference, behaviour))

    def went(state):
        return exp(sum(float(logp_mu[tree.row[s], a]) for s, a in tree.visited(state)))

    def earned(after):
        """What mu still earns with the action that ends in `after`, and later; log-ratios are the policy's."""
        i, action = tree.row[after[:-1]], after[-1]
        now = tree.reward[after] - BETA * float(logp[i, action] - logp_ref[i, action])
        if after not in tree.row:
            return now
        j = tree.row[after]
        return now + sum(exp(float(logp_mu[j, a])) * earned((*after, a)) for a in range(tree.vocabulary))

    leaf = table.clone().requires_grad_()
    policy, expected = leaf.softmax(-1), 0.0
    for state in tree.states:
        for action in range(tree.vocabulary):
            advantage = earned((*state, action)) - float(value[tree.row[state]])
            expected = expected + went(state) * policy[tree.row[state], action] * advantage
    (slope,) = torch.autograd.grad(expected, leaf)
    found = paths.expected_gradient(table, reference, value, behaviour, gae_lam=1.0, importance_cap=inf)
    assert_close(found, -slope)


# ------------------------------------------------------------------ where it arrives
SAMPLES = 2000


def dealt(probabilities):
    """Rows `[SAMPLES]` of paths in proportion to their probabilities, rounded to whole trajectories."""
    exact = SAMPLES * probabilities.detach()
    counts = exact.floor().long()
    left = SAMPLES - int(counts.sum())
    counts[(exact - counts).argsort(descending=True)[:left]] += 1
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def trained(paths, reference, *, lag=0, behaviour=None, steps=400, epochs=4, **options):
    """(table, values of states) after `steps` batches, `epochs` updates each, of the policy of `lag` steps ago."""
    table = reference.clone().requires_grad_()
    value = torch.zeros(len(reference), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [table], "lr": 0.05}, {"params": [value], "lr": 0.1}])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.985)
    frozen, past = paths.scores(reference), []
    for _ in range(steps):
        past = [*past, table.detach().clone()][-lag - 1 :]
        acting = past[0] if behaviour is None else behaviour
        chosen = dealt(paths.probabilities(acting))
        batch, fixed = paths.batch(acting, chosen), ActionScores(frozen.logit[chosen], frozen.log_partition[chosen])
        for _ in range(epochs):
            policy = paths.scores(table, value, chosen)
            terms = PPO(batch, policy, fixed, **options)
            batch = batch if batch.proximal else replace(batch, proximal=policy.detach())
            optimiser.zero_grad()
            (terms.total / terms.count).backward()
            optimiser.step()
        schedule.step()
    return table.detach(), value.detach()


def shortfall(paths, table, reference):
    """(Vsoft - objective, beta KL(pi || pi*)), which are one number: docs/math.md, "Objective"."""
    tree = paths.tree
    best = float(tree.optimum(reference, BETA)[1][tree.row[()]])
    apart = kl(tree.probabilities(table), tree.best_probabilities(reference, BETA))
    return best - float(paths.objective(table, reference)), BETA * apart


@pytest.mark.parametrize("lag", rest_slow([4, 0]))
def test_it_arrives_at_the_optimum_of_the_regularised_objective_also_with_stale_samples(lag):
    tree, reference, _, _ = world()
    paths = Enumerated(tree)
    table, value = trained(paths, reference, lag=lag)
    before, after = shortfall(paths, reference, reference), shortfall(paths, table, reference)
    assert before[0] > 0.1
    assert after[0] == pytest.approx(after[1], abs=1e-9)
    assert 0 <= after[0] < 1e-3 * before[0]
    start = tree.row[()]
    assert float(value[start]) == pytest.approx(float(tree.optimum(reference, BETA)[1][start]), abs=0.02)


@pytest.mark.parametrize(("cap", "arrives"), [(inf, True), (1e-9, False)])
def test_from_a_behaviour_that_never_changes_single_actions_arrive_there_with_weights_alone(cap, arrives):
    tree, reference, _, _ = world(seed=1, horizon=1)
    paths = Enumerated(tree)
    behaviour = -tree.optimum(reference, BETA)[0] / BETA  # it likes what is worst
    table, _ = trained(paths, reference, behaviour=behaviour, importance_cap=cap)
    before, after = (shortfall(paths, x, reference)[0] for x in (reference, table))
    assert after < 0.01 * before if arrives else after > 0.5 * before
