"""Where minimising each loss from the reference arrives: at the optimal policy, or at a bias that is known."""

from functools import partial
from itertools import combinations
from math import exp, log

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from tests.losses.test_fixed_points import BETA, DIRECT, DRO, DRO_V, INIT, SHAPED, TBRM, UNSHIFTED, soft_q, world
from tests.losses.trees import Tree, kl, minimised

ARRIVING = {**SHAPED, "shiq_init": INIT, "tbrm": TBRM, "direct": DIRECT, **UNSHIFTED}
del ARRIVING["copg-best_worst"]  # one pair says nothing of the other paths
DPO = partial(losses.dpo, beta=BETA)


def on_all_paths(loss, tree, reference):
    """The loss of a table on every path of the tree."""
    batch, frozen = tree.trajectories(), tree.scores(reference)
    return lambda table: loss(batch, tree.scores(table), frozen)


def distance(tree, table, reference):
    """KL(pi || pi*), nats, over paths."""
    return kl(tree.probabilities(table), tree.best_probabilities(reference, BETA))


@pytest.mark.parametrize("name", ARRIVING)
def test_minimising_from_the_reference_arrives_at_the_optimal_policy(name):
    tree, reference, _ = world(vocabulary=3, horizon=3)
    found = minimised(on_all_paths(ARRIVING[name], tree, reference), reference)
    assert distance(tree, reference, reference) > 0.1
    assert distance(tree, found, reference) < 1e-8


def test_minimising_soft_q_from_zero_arrives_at_the_optimal_policy():
    tree, reference, q = world(vocabulary=3, horizon=3)
    found = minimised(lambda table: soft_q(tree, table, reference), torch.zeros_like(reference))
    assert distance(tree, reference.log_softmax(-1) + found / BETA, reference) < 1e-8
    assert_close(found, q, rtol=0, atol=1e-5)  # LBFGS stops at gradients near 1e-13


@pytest.mark.parametrize(
    "name", ["shiq-1.0", "shiq-0.5", "shiq-fades", "shiq-fades-by-turn", "shiq_ms", "shiq_init", "direct"]
)
def test_the_minimiser_is_unique_as_logits(name):
    tree, reference, q = world(vocabulary=3, horizon=3)
    base = reference.log_softmax(-1) if name in ("shiq_init", "direct") else reference
    found = minimised(on_all_paths(ARRIVING[name], tree, reference), reference)
    assert_close(found, base + q / BETA, rtol=0, atol=1e-5)  # LBFGS stops at gradients near 1e-13


def test_descending_with_a_value_network_arrives_at_the_optimal_policy_and_its_value():
    tree, reference, _ = world(vocabulary=3, horizon=3)
    table, value = reference.clone().requires_grad_(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    batch, frozen = tree.trajectories(), tree.scores(reference)
    optimiser = torch.optim.Adam([table, value], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.996)
    for _ in range(1500):
        optimiser.zero_grad()
        DRO_V(batch, tree.scores(table, value=value), frozen).total.backward()
        optimiser.step()
        schedule.step()
    assert distance(tree, table.detach(), reference) < 1e-8
    assert value.item() == pytest.approx(float(tree.optimum(reference, BETA)[1][0]), abs=1e-4)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_dro_without_a_baseline_arrives_only_where_the_optimal_value_is_zero(level):
    tree, reference, _ = world(vocabulary=3, horizon=3)
    tree.lift(level - float(tree.optimum(reference, BETA)[1][0]))
    found = minimised(on_all_paths(DRO, tree, reference), reference)
    if level == 0:
        assert distance(tree, found, reference) < 1e-8
        return
    biased = without_value(tree.probabilities(reference), [sum(tree.rewards(path)) for path in tree.paths])
    assert kl(tree.probabilities(found), biased) < 1e-8
    expected = kl(biased, tree.best_probabilities(reference, BETA))
    assert expected > 0.1
    assert distance(tree, found, reference) == pytest.approx(expected, rel=1e-4)


def without_value(prior, returns, beta=BETA):
    """argmin over distributions p of sum (R - beta log(p / prior))^2, by bisection on the multiplier of sum p = 1."""

    def at(multiplier):
        """The root x of 2 beta (beta x - R) + multiplier prior exp(x), which rises in x, for every path."""
        return [
            bisected(lambda x, p=p, r=r: 2 * beta * (beta * x - r) + multiplier * p * exp(x), -30, 30)
            for p, r in zip(prior, returns, strict=True)
        ]

    def mass(ratios):
        return sum(p * exp(x) for p, x in zip(prior, ratios, strict=True))

    ratios = at(bisected(lambda multiplier: 1 - mass(at(multiplier)), 0, 1e3))
    return [p * exp(x) for p, x in zip(prior, ratios, strict=True)]


def bisected(f, low, high):
    """The root of a rising function."""
    assert f(low) <= 0 <= f(high)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return (low + high) / 2


def odds_world():
    """(tree, reference, weights): returns are logs of the weights, so that Bradley-Terry frequencies are fractions."""
    tree = Tree(vocabulary=3, horizon=3)
    weights = [1 + i * i % 7 % 4 for i in range(len(tree.paths))]
    tree.give([log(weight) for weight in weights])
    return tree, tree.table(), weights


def labelled(tree, weights):
    """(paths, batch): every pair of paths as groups of two, `a` preferred to `b` in a of a + b of them."""
    pairs = [
        (winner, loser)
        for i, j in combinations(range(len(weights)), 2)
        for winner, loser in [(i, j)] * weights[i] + [(j, i)] * weights[j]
    ]
    paths = [tree.paths[i] for pair in pairs for i in pair]
    batch = tree.trajectories(paths, rewarded=False)
    batch.rewards[::2, 0] = 1.0
    batch.group[:] = torch.arange(len(paths)) // 2
    return paths, batch


def test_preferences_with_bradley_terry_labels_arrive_at_the_optimal_policy():
    tree, reference, weights = odds_world()
    paths, batch = labelled(tree, weights)
    frozen = tree.scores(reference, paths)
    found = minimised(lambda table: DPO(batch, tree.scores(table, paths), frozen), reference)
    assert distance(tree, reference, reference) > 0.1
    assert distance(tree, found, reference) < 1e-8


def test_preferences_with_certain_labels_put_everything_on_the_best_path():
    tree, reference, _ = world(vocabulary=3, horizon=3)
    found = minimised(on_all_paths(DPO, tree, reference), reference)
    returns, best = [sum(tree.rewards(path)) for path in tree.paths], tree.best_probabilities(reference, BETA)
    expected = -log(best[returns.index(max(returns))])
    assert expected > 0.5
    assert distance(tree, found, reference) == pytest.approx(expected, rel=1e-3)


def test_squared_preferences_with_certain_labels_weigh_a_path_by_its_share_of_wins_over_beta():
    """docs/math.md, "IPO": log-ratios are, up to a constant, wins / (n beta), the solution of least squares."""
    tree, reference, _ = world(vocabulary=3, horizon=3)
    found = minimised(on_all_paths(partial(losses.ipo, beta=BETA), tree, reference), reference)
    returns = [sum(tree.rewards(path)) for path in tree.paths]
    wins = [sum(r > other for other in returns) for r in returns]
    prior = tree.probabilities(reference)
    weights = [p * exp(won / len(returns) / BETA) for p, won in zip(prior, wins, strict=True)]
    biased = [weight / sum(weights) for weight in weights]
    expected = kl(biased, tree.best_probabilities(reference, BETA))
    assert kl(tree.probabilities(found), biased) < 1e-8
    assert expected > 0.01
    assert distance(tree, found, reference) == pytest.approx(expected, rel=1e-4)


def test_preferences_with_smoothed_certain_labels_arrive_at_a_compromise_that_ignores_the_size_of_rewards():
    tree, reference, _ = world(vocabulary=3, horizon=3)
    found = minimised(on_all_paths(partial(DPO, label_smoothing=0.1), tree, reference), reference)
    returns, best = [sum(tree.rewards(path)) for path in tree.paths], tree.best_probabilities(reference, BETA)
    prior = tree.probabilities(reference)
    weights = [p * exp(u / BETA) for p, u in zip(prior, ranked(returns, 0.1), strict=True)]
    biased = [weight / sum(weights) for weight in weights]
    assert kl(tree.probabilities(found), biased) < 1e-8
    assert kl(biased, best) > 0.05
    assert distance(tree, found, reference) == pytest.approx(kl(biased, best), rel=1e-4)


def ranked(returns, wrong):
    """argmin over u of the mean over pairs of -(1-e) log s(u_w - u_l) - e log s(u_l - u_w), by descent by hand."""
    u = [0.0] * len(returns)
    for _ in range(20000):
        slope = [0.0] * len(u)
        for i, j in combinations(range(len(u)), 2):
            w, l = (i, j) if returns[i] > returns[j] else (j, i)  # noqa: E741
            excess = 1 / (1 + exp(u[l] - u[w])) - (1 - wrong)
            slope[w] += excess
            slope[l] -= excess
        u = [x - 0.2 * s for x, s in zip(u, slope, strict=True)]
        if max(abs(s) for s in slope) < 1e-10:
            break
    return u


def test_a_reward_model_recovers_the_differences_of_bradley_terry_scores():
    tree, reference, weights = odds_world()
    paths, batch = labelled(tree, weights)
    order = torch.tensor([tree.paths.index(path) for path in paths])
    policy = tree.scores(reference, paths)
    noise = torch.randn(batch.rewards.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    last = torch.arange(noise.shape[1]) == batch.action_mask.sum(-1, keepdim=True) - 1

    def objective(score):
        value = torch.where(last, score[order][:, None], noise)
        return losses.reward_model(batch, type(policy)(policy.logit, policy.log_partition, value), None)

    found = minimised(objective, torch.zeros(len(weights), dtype=torch.float64))
    expected = torch.tensor(weights, dtype=torch.float64).log()
    assert_close(found - found[0], expected - expected[0], rtol=0, atol=1e-6)  # LBFGS stops near 1e-13 in the gradient
