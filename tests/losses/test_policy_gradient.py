"""PPO: its advantages and its loss by hand, where its gradient goes and where it does not, and where it arrives."""

from dataclasses import replace
from functools import partial
from math import exp, inf, log, nan

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.losses.policy_gradient import advantages
from shiqrun.types import ActionScores
from tests.losses.naive import LENGTHS, gradients, ragged, scores
from tests.losses.trees import Tree, kl

BETA = 0.7
PPO = partial(losses.ppo, beta=BETA)
SHAPES = [(0.95, 1.0), (1.0, 1.0), (0.0, 0.9), (0.6, 0.9), (1.0, 0.5)]
"""lambda and discount."""


def given(seed=0, spread=0.4):
    """(batch, policy, reference) on ragged rows, with proximal scores near the policy's and a behaviour near those."""
    batch, policy, reference = ragged(seed=seed)
    draw = torch.Generator().manual_seed(seed + 100)
    noise = spread * torch.randn(4, *batch.rewards.shape, dtype=torch.float64, generator=draw)
    near = (policy.logit, policy.log_partition, policy.value)
    proximal = ActionScores(*(x.detach() + e for x, e in zip(near, noise[:3], strict=True)))
    batch = replace(batch, proximal=proximal, behaviour_logp=proximal.logp + 2 * noise[3])
    return batch, policy, reference


# ------------------------------------------------------------------ by hand
def naive_advantages(batch, proximal, reference, gae_lam, discount):
    """From the definition: the sum over k of (discount lambda)^k times the k-th later temporal difference."""
    found = torch.zeros_like(batch.rewards)
    for b, length in enumerate(LENGTHS):
        v = [float(proximal.value[b, t]) for t in range(length)] + [0.0]
        earned = [
            float(batch.rewards[b, t]) - BETA * float((proximal.logp - reference.logp).detach()[b, t])
            for t in range(length)
        ]
        errors = [earned[t] + discount * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            found[b, t] = sum((discount * gae_lam) ** k * errors[t + k] for k in range(length - t))
    return found


@pytest.mark.parametrize(("gae_lam", "discount"), SHAPES)
def test_advantages_are_those_of_a_hand_loop(gae_lam, discount):
    batch, _, reference = given()
    found = advantages(batch, batch.proximal, reference, beta=BETA, gae_lam=gae_lam, discount=discount)
    assert_close(found, naive_advantages(batch, batch.proximal, reference, gae_lam, discount))
    assert not found.requires_grad


def test_with_lambda_one_the_values_target_is_the_regularised_return_to_go():
    batch, _, reference = given()
    found = advantages(batch, batch.proximal, reference, beta=BETA, gae_lam=1.0, discount=1.0) + batch.proximal.value
    for b, length in enumerate(LENGTHS):
        to_go = 0.0
        for t in reversed(range(length)):
            to_go += float(batch.rewards[b, t] - BETA * (batch.proximal.logp[b, t] - reference.logp[b, t]))
            assert float(found[b, t]) == pytest.approx(to_go)


def naive(batch, policy, reference, *, clip, gae_lam, discount, value_clip, importance_cap):
    """(sum over actions, metrics) by a loop over every action."""
    advantage = naive_advantages(batch, batch.proximal, reference, gae_lam, discount)
    total, found = 0.0, dict.fromkeys(("clip_fraction", "approx_kl", "importance_mean", "importance_capped"), 0.0)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            a, old = float(advantage[b, t]), float(batch.proximal.value[b, t])
            exact = exp(float(batch.proximal.logp[b, t] - batch.behaviour_logp[b, t]))
            weight = min(exact, importance_cap)
            rho = torch.exp(policy.logp[b, t] - batch.proximal.logp[b, t])
            total = total - weight * min(rho * a, min(max(rho, 1 - clip), 1 + clip) * a)
            value, target = policy.value[b, t], a + old
            error = (value - target) ** 2
            if value_clip is not None:
                error = max(error, (old + min(max(value - old, -value_clip), value_clip) - target) ** 2)
            total = total + error / 2
            found["clip_fraction"] += float(rho) > 1 + clip if a > 0 else float(rho) < 1 - clip
            found["approx_kl"] += float(rho) - 1 - log(float(rho))
            found["importance_mean"] += exact
            found["importance_capped"] += exact > importance_cap
    return total, found


@pytest.mark.parametrize("value_clip", [None, 0.2])
@pytest.mark.parametrize(("clip", "gae_lam", "discount", "cap"), [(0.2, 0.95, 1.0, 2.0), (0.1, 0.6, 0.9, 1.1)])
def test_loss_gradient_and_metrics_are_those_of_a_loop_over_actions(clip, gae_lam, discount, cap, value_clip):
    options = {"clip": clip, "gae_lam": gae_lam, "discount": discount, "importance_cap": cap, "value_clip": value_clip}
    batch, policy, reference = given()
    terms, (total, metrics) = PPO(batch, policy, reference, **options), naive(batch, policy, reference, **options)
    assert int(terms.count) == sum(LENGTHS)
    assert float(terms.total) == pytest.approx(float(total))
    for name, number in metrics.items():
        assert float(terms.metrics[name][0]) == pytest.approx(number), name
        assert number > 0, f"{name} tells nothing here"
    assert_close(
        gradients(terms, policy), list(torch.autograd.grad(total, (policy.logit, policy.log_partition, policy.value)))
    )
    parts = terms.metrics["policy_loss"][0] + terms.metrics["value_loss"][0]
    assert float(parts) == pytest.approx(float(terms.total))


@pytest.mark.parametrize("filling", [nan, inf, 1e300])
def test_nothing_in_the_padding_reaches_value_gradient_or_metrics(filling):
    batch, policy, reference = given()
    empty = ~batch.action_mask

    def filled(x):
        return x.detach().masked_fill(empty, filling).requires_grad_()

    def all_filled(s):
        return ActionScores(filled(s.logit), filled(s.log_partition), filled(s.value))

    other = replace(
        batch,
        rewards=batch.rewards.masked_fill(empty, filling),
        behaviour_logp=batch.behaviour_logp.masked_fill(empty, filling),
        proximal=all_filled(batch.proximal).fixed(),
    )
    same = all_filled(policy)
    options = {"value_clip": 0.2}
    one, two = PPO(batch, policy, reference, **options), PPO(other, same, all_filled(reference), **options)
    assert_close((two.total, two.count, two.metrics), (one.total, one.count, one.metrics))
    found = gradients(two, same)
    assert_close(found, gradients(one, policy))
    assert not any(g[empty].any() for g in found)


@pytest.mark.parametrize("width", [0, 2])
def test_a_batch_without_any_action_counts_nothing_and_is_zero(width):
    batch, policy, reference = ragged(lengths=(0, 0), width=width)
    terms = PPO(replace(batch, behaviour_logp=torch.zeros(2, width)), policy, reference)
    assert float(terms.total) == int(terms.count) == 0
    assert not any(g.any() for g in gradients(terms, policy))


# ------------------------------------------------------------------ what is absent
def test_a_batch_without_proximal_scores_is_one_whose_policy_has_not_moved():
    batch, policy, reference = given()
    first, again = replace(batch, proximal=None), replace(batch, proximal=policy.fixed())
    one, two = PPO(first, policy, reference), PPO(again, policy, reference)
    assert_close((one.total, one.metrics), (two.total, two.metrics))
    assert_close(gradients(one, policy), gradients(two, policy))
    assert float(one.metrics["approx_kl"][0]) == float(one.metrics["clip_fraction"][0]) == 0


def test_what_it_cannot_do_without_is_named():
    batch, policy, reference = given()
    bare = ActionScores(policy.logit, policy.log_partition)
    with pytest.raises(ValueError, match=r"policy\.value"):
        PPO(batch, bare, reference)
    with pytest.raises(ValueError, match=r"policy\.value"):
        PPO(replace(batch, proximal=bare), policy, reference)
    with pytest.raises(ValueError, match="behaviour_logp"):
        PPO(replace(batch, behaviour_logp=None), policy, reference)


# ------------------------------------------------------------------ clipping
def one_action(ratio, advantage, **options):
    """d loss / d log pi of one action with this ratio and advantage, of weight 1."""
    tree = Tree(vocabulary=2, horizon=1)
    old = scores((1, 1), torch.Generator().manual_seed(0)).fixed()
    batch = replace(
        tree.trajectories(tree.paths[:1]), proximal=replace(old, value=torch.zeros(1, 1, dtype=torch.float64))
    )
    batch = replace(batch, behaviour_logp=old.logp, rewards=torch.full((1, 1), advantage, dtype=torch.float64))
    logit = (old.logit + log(ratio)).requires_grad_()
    policy = ActionScores(logit, old.log_partition, batch.proximal.value)
    (slope,) = torch.autograd.grad(PPO(batch, policy, old, **options).total, logit)
    return float(slope)


@pytest.mark.parametrize("size", [0.5, 3.0])
@pytest.mark.parametrize(
    ("ratio", "sign", "kept"),
    [
        (1.0, 1, True),
        (1.0, -1, True),
        (1.19, 1, True),
        (1.21, 1, False),  # it has gained enough
        (1.21, -1, True),  # it went the wrong way
        (0.81, -1, True),
        (0.79, -1, False),
        (0.79, 1, True),
        (5.0, -1, True),
        (5.0, 1, False),
        (0.01, -1, False),
        (0.01, 1, True),
    ],
)
def test_clipping_takes_the_gradient_of_what_has_gained_enough_and_of_nothing_else(ratio, sign, kept, size):
    expected = -ratio * sign * size if kept else 0.0
    assert one_action(ratio, sign * size) == pytest.approx(expected)


def test_the_width_of_clipping_is_its_argument():
    assert one_action(1.3, 1.0, clip=0.4) == pytest.approx(-1.3)
    assert one_action(1.3, 1.0, clip=0.2) == 0
    assert one_action(0.65, -1.0, clip=0.4) == pytest.approx(0.65)
    assert one_action(0.55, -1.0, clip=0.4) == 0


def test_clipping_takes_the_values_gradient_where_it_has_come_far_enough_and_nowhere_else():
    batch, policy, reference = given()
    advantage = advantages(batch, batch.proximal, reference, beta=BETA, gae_lam=0.95, discount=1.0)
    moved = (policy.value - batch.proximal.value).detach()
    # Beyond the clip towards the target, the error of the clipped value is the larger one and has no gradient
    done = (
        batch.action_mask
        & (moved.abs() > 0.1)
        & ((moved - advantage).abs() < (moved.clamp(-0.1, 0.1) - advantage).abs())
    )
    slope = gradients(PPO(batch, policy, reference, value_clip=0.1), policy)[2]
    assert 0 < int(done.sum()) < sum(LENGTHS)
    assert torch.equal(slope != 0, batch.action_mask & ~done)


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
            batch = batch if batch.proximal else replace(batch, proximal=policy.fixed())
            optimiser.zero_grad()
            (terms.total / terms.count).backward()
            optimiser.step()
        schedule.step()
    return table.detach(), value.detach()


def shortfall(paths, table, reference):
    """(Vsoft - objective, beta KL(pi || pi*)), which are one number [P4]."""
    tree = paths.tree
    best = float(tree.optimum(reference, BETA)[1][tree.row[()]])
    apart = kl(tree.probabilities(table), tree.best_probabilities(reference, BETA))
    return best - float(paths.objective(table, reference)), BETA * apart


@pytest.mark.parametrize("lag", [0, 4])
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
