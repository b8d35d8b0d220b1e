"""SPO: what must hold for every policy, what holds at the optimum alone, and where descending each loss arrives."""

from dataclasses import replace
from functools import partial
from math import exp, log

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.losses.soft_policy import cumulative_q, log_probability_loss, monte_carlo, q_errors
from tests.losses.test_minimisers import without_value
from tests.losses.trees import Tree, kl, minimised
from tests.support.selection import rest_slow

BETA = 0.7
SQUARE = partial(losses.spo, beta=BETA)
CROSS = partial(losses.spo, beta=BETA, link="cross_entropy", eps=1e-2)
REVERSE = partial(losses.spo_nonterminal, beta=BETA)
REVERSE_CROSS = partial(losses.spo_nonterminal, beta=BETA, link="cross_entropy", eps=1e-2)
WARPED = partial(losses.spo_advantage, beta=BETA)
ALL = {"square": SQUARE, "cross": CROSS, "reverse": REVERSE, "reverse_cross": REVERSE_CROSS, "warped": WARPED}


def world(seed=0):
    """(tree with returns below 0, a reference's table, its optimal Q-values, its prompt's value).

    At a return of 0 the cross-entropy has a kink: its target is a probability of 1.
    """
    tree = Tree(vocabulary=3, horizon=3, seed=seed)
    tree.lift(-0.2 - max(sum(tree.rewards(path)) for path in tree.paths))
    reference = tree.table(scale=1.0)
    q, v = tree.optimum(reference, BETA)
    return tree, reference, q, float(v[tree.row[()]])


def batch_of(tree, value):
    batch = tree.trajectories()
    return replace(batch, prompt_value=torch.full((len(tree.paths),), value, dtype=torch.float64))


def by_prefix(tree, table, reference, value):
    """Q of every prefix, from the rows of all paths, which must agree."""
    quality = cumulative_q(batch_of(tree, value), tree.scores(table), tree.scores(reference), BETA)
    found = {}
    for path, row in zip(tree.paths, quality.tolist(), strict=True):
        for t in range(len(path)):
            assert found.setdefault(path[: t + 1], row[t]) == pytest.approx(row[t], abs=1e-12)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_for_every_policy_q_is_the_soft_value_of_what_follows(seed):
    """docs/math.md, "Identities" (theorem 2.2 of arXiv 2503.05453): with any Q0, at every state."""
    tree, reference, _, _ = world(seed)
    prior, value = reference.softmax(-1), -0.37
    q = by_prefix(tree, tree.table(), reference, value) | {(): value}
    for state in tree.states:
        after = [float(prior[tree.row[state], a]) * exp(q[(*state, a)] / BETA) for a in range(tree.vocabulary)]
        assert q[state] == pytest.approx(BETA * log(sum(after)), abs=1e-12)


def test_for_every_policy_advantages_add_up_to_differences_of_q():
    """docs/math.md, "Identities" (theorem 2.3), on every stretch of every path."""
    tree, reference, _, _ = world()
    table = tree.table()
    q = by_prefix(tree, table, reference, 0.25) | {(): 0.25}
    ours, theirs = table.log_softmax(-1), reference.log_softmax(-1)
    for path in tree.paths:
        gained = [BETA * float(ours[tree.row[s], a] - theirs[tree.row[s], a]) for s, a in tree.visited(path)]
        for i in range(len(path)):
            for j in range(i, len(path)):
                assert sum(gained[i : j + 1]) == pytest.approx(q[path[: j + 1]] - q[path[:i]], abs=1e-12)


def test_the_best_policys_q_is_what_the_reference_would_still_earn_softly():
    """Q_t = beta log E_ref[exp(R / beta) | prefix], so Q_T = R; for no other policy (theorems 2.1, 2.4)."""
    tree, reference, q, value = world()
    prior = dict(zip(tree.paths, tree.probabilities(reference), strict=True))
    gain = {path: exp(sum(tree.rewards(path)) / BETA) for path in tree.paths}
    found = by_prefix(tree, reference + q / BETA, reference, value)
    for prefix, quality in found.items():
        inside = [path for path in tree.paths if path[: len(prefix)] == prefix]
        mean = sum(prior[p] * gain[p] for p in inside) / sum(prior[p] for p in inside)
        assert quality == pytest.approx(BETA * log(mean), abs=1e-10)
    other = by_prefix(tree, tree.table(), reference, value)
    assert max(abs(other[p] - sum(tree.rewards(p))) for p in tree.paths) > 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_the_objective_falls_short_of_the_soft_value_by_the_kl_to_the_best_policy(seed):
    """docs/math.md, "Identities": E_pi[R] - beta KL(pi || pi_ref) = Q0 - beta KL(pi || pi*)."""
    tree, reference, _, value = world(seed)
    policy, prior = tree.probabilities(tree.table()), tree.probabilities(reference)
    earned = sum(p * sum(tree.rewards(path)) for p, path in zip(policy, tree.paths, strict=True))
    objective = earned - BETA * kl(policy, prior)
    best = tree.best_probabilities(reference, BETA)
    assert objective == pytest.approx(value - BETA * kl(policy, best), abs=1e-12)


@pytest.mark.parametrize("name", rest_slow(ALL, 2))
def test_descending_arrives_at_the_optimal_policy(name):
    tree, reference, _, value = world()
    table, batch, frozen = reference.clone().requires_grad_(), batch_of(tree, value), tree.scores(reference)
    optimiser = torch.optim.Adam([table], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.992)
    for _ in range(1000):
        optimiser.zero_grad()
        ALL[name](batch, tree.scores(table), frozen).total.backward()
        optimiser.step()
        schedule.step()
    best = tree.best_probabilities(reference, BETA)
    assert kl(tree.probabilities(reference), best) > 0.1
    assert kl(tree.probabilities(table.detach()), best) < 1e-8


@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.0, 5.0])
def test_prompt_values_at_a_temperature_of_their_own_move_the_minimiser_by_what_they_are_off(ratio):
    """docs/methods.md, A*-PO: the value at another temperature is that of `dro` with a wrong constant for V."""
    tree, reference, _, _ = world()
    prior, returns, own = tree.probabilities(reference), tree.returns(), ratio * BETA
    value = own * log(sum(p * exp(r / own) for p, r in zip(prior, returns, strict=True)))
    batch, frozen = batch_of(tree, value), tree.scores(reference)
    found = tree.probabilities(minimised(lambda table: SQUARE(batch, tree.scores(table), frozen), reference))
    best = tree.best_probabilities(reference, BETA)
    assert (kl(found, best) < 1e-8) == (ratio == 1)
    if ratio > 1:  # a value too low, as `without_value` takes it
        biased = without_value(prior, [r - value for r in returns], BETA)
        assert kl(found, biased) < 1e-8
        assert kl(biased, best) > 1e-4


@pytest.mark.parametrize("name", ALL)
def test_at_the_optimum_no_gradient_is_left(name):
    tree, reference, q, value = world()
    table = (reference + q / BETA).requires_grad_()
    ALL[name](batch_of(tree, value), tree.scores(table), tree.scores(reference)).total.backward()
    assert_close(table.grad, torch.zeros_like(table), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_a_return_below_q_pushes_its_actions_down_and_one_above_it_up(name):
    tree, reference, _, _ = world()
    path = [max(tree.paths, key=len)]
    level = sum(tree.rewards(path[0]))
    for q0, sign in ((min(level + 0.3, -1e-3), 1), (level - 0.3, -1)):
        batch = replace(tree.trajectories(path), prompt_value=torch.tensor([q0], dtype=torch.float64))
        scores = tree.scores(reference, path)
        logit = scores.logit.clone().requires_grad_()
        ALL[name](batch, replace(scores, logit=logit), scores).total.backward()
        assert (sign * logit.grad[batch.action_mask]).min() > 0


def test_reverse_targets_weigh_early_actions_more():
    """The gradient of the terminal square times T - k + 1 at action k."""
    tree, reference, _, value = world()
    batch, theirs = batch_of(tree, value), tree.scores(reference)
    gradients = []
    for loss in (SQUARE, REVERSE):
        scores = tree.scores(tree.table(scale=0.5) * 0 + reference * 0.5)
        logit = scores.logit.clone().requires_grad_()
        loss(batch, replace(scores, logit=logit), theirs).total.backward()
        gradients.append(logit.grad)
    length = batch.action_mask.sum(-1, keepdim=True)
    weight = (length - torch.arange(batch.action_mask.shape[1])).masked_fill(~batch.action_mask, 0)
    assert_close(gradients[1], gradients[0] * weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cross_entropy_is_finite_everywhere(dtype):
    y = torch.tensor([-1e30, -1e4, -90.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 80.0, 1e4, 1e30], dtype=dtype)
    for x in (0.0, 1e-40, 1e-6, 0.5, 1.0):
        at = y.clone().requires_grad_()
        loss = log_probability_loss(at, torch.full_like(at, x), 1e-3)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert at.grad.isfinite().all()
        assert_close(at.grad[y >= 0], torch.full_like(y[y >= 0], (1 - x) / (exp(1e-3) - 1)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("x", [1e-4, 0.2, 0.5, 0.97])
def test_the_cross_entropy_is_least_where_the_probability_is_right(x):
    y = torch.tensor([log(x) - 0.2, log(x), min(log(x) + 0.2, -1e-3)], dtype=torch.float64, requires_grad=True)
    loss = log_probability_loss(y, torch.full_like(y, x), 1e-6)
    loss.sum().backward()
    assert y.grad[0] < 0 < y.grad[2]
    assert float(y.grad[1]) == pytest.approx(0, abs=1e-12)
    assert loss[1] < min(loss[0], loss[2])
    entropy = -x * log(x) - (1 - x) * log(1 - x)
    assert loss[1].item() == pytest.approx(entropy, abs=1e-12)


def test_a_target_above_the_largest_reward_counts_as_that_reward():
    """A reverse-Q target may be any number, but a probability is at most 1."""
    quality = torch.tensor([-2.0, -0.5, -0.05], dtype=torch.float64)
    cross = partial(q_errors, quality, link="cross_entropy", beta=BETA, top=0.0, eps=1e-2)
    at_top = cross(torch.zeros_like(quality))
    assert_close(cross(torch.full_like(quality, 0.4)), at_top)
    assert_close(at_top, -quality / BETA)  # -log of Q's probability, as of a coin that always succeeds


def test_rewards_above_zero_are_shifted_by_their_top():
    tree, reference, _, value = world()
    table, frozen = tree.scores(tree.table()), tree.scores(reference)
    below = CROSS(batch_of(tree, value), table, frozen)
    tree.lift(1.0)  # so that some are above 0
    above = losses.spo(batch_of(tree, value + 1), table, frozen, beta=BETA, link="cross_entropy", eps=1e-2, top=1.0)
    assert_close(above.total, below.total)


def annotated(tree, reference, q, value, chosen):
    """The batch with beta log E_ref[exp(R / beta) | prefix] at the chosen prefixes."""
    batch, right = batch_of(tree, value), by_prefix(tree, reference + q / BETA, reference, value)
    target = torch.full_like(batch.rewards, torch.nan)
    for row, path in enumerate(tree.paths):
        for t in range(len(path)):
            if path[: t + 1] in chosen:
                target[row, t] = right[path[: t + 1]]
    return replace(batch, value_target=target)


def test_the_monte_carlo_term_is_at_rest_where_annotated_prefixes_have_their_value():
    tree, reference, q, value = world()
    chosen = {(1,), (2, 1), (1, 2)}
    batch = annotated(tree, reference, q, value, chosen)
    table = (reference + q / BETA).requires_grad_()
    terms = monte_carlo(batch, tree.scores(table), tree.scores(reference), beta=BETA)
    terms.total.backward()
    assert int(terms.count) == sum(path[: t + 1] in chosen for path in tree.paths for t in range(len(path)))
    assert_close(table.grad, torch.zeros_like(table), rtol=0, atol=1e-10)
    other = tree.table().requires_grad_()
    monte_carlo(batch, tree.scores(other), tree.scores(reference), beta=BETA).total.backward()
    assert other.grad[tree.row[()]].abs().max() > 1e-3


def test_without_annotations_the_monte_carlo_term_is_nothing():
    tree, reference, _, value = world()
    terms = monte_carlo(batch_of(tree, value), tree.scores(tree.table()), tree.scores(reference), beta=BETA)
    assert (float(terms.total), int(terms.count)) == (0, 0)


@pytest.mark.parametrize("name", [*ALL, "monte_carlo"])
def test_padding_is_not_looked_at(name):
    tree, reference, q, value = world()
    loss = {**ALL, "monte_carlo": partial(monte_carlo, beta=BETA)}[name]
    batch = annotated(tree, reference, q, value, {(1,)})
    pad = ~batch.action_mask
    soiled = replace(batch, rewards=batch.rewards.masked_fill(pad, torch.nan))
    ours, theirs = tree.scores(tree.table()), tree.scores(reference)
    logit = ours.logit.masked_fill(pad, torch.nan).requires_grad_()
    terms = loss(soiled, replace(ours, logit=logit), theirs)
    terms.total.backward()
    assert_close(terms.total, loss(batch, ours, theirs).total)
    assert not logit.grad[pad].any()
    assert logit.grad[~pad].isfinite().all()


@pytest.mark.parametrize("name", [*ALL, "monte_carlo"])
def test_sums_and_counts_of_parts_are_those_of_the_whole(name):
    tree, reference, q, value = world()
    loss = {**ALL, "monte_carlo": partial(monte_carlo, beta=BETA)}[name]
    whole, table = annotated(tree, reference, q, value, {(1,), (2, 1)}), tree.table()
    parts = []
    for some in (tree.paths[::2], tree.paths[1::2]):
        rows = torch.tensor([tree.paths.index(path) for path in some])
        width = max(len(path) for path in some)
        part = replace(
            tree.trajectories(some),
            prompt_value=whole.prompt_value[rows],
            value_target=whole.value_target[rows, :width],
        )
        parts.append(loss(part, tree.scores(table, some), tree.scores(reference, some)))
    one = loss(whole, tree.scores(table), tree.scores(reference))
    assert_close(sum(p.total for p in parts), one.total)
    assert sum(p.count for p in parts) == one.count
    for key, (total, count) in one.metrics.items():
        assert_close(sum(p.metrics[key][0] for p in parts), total)
        assert sum(p.metrics[key][1] for p in parts) == count


def test_a_batch_without_prompt_values_is_refused():
    tree, reference, _, _ = world()
    with pytest.raises(ValueError, match="prompt_value"):
        SQUARE(tree.trajectories(), tree.scores(reference), tree.scores(reference))
