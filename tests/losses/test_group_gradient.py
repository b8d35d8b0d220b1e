"""GRPO and RLOO: their gradients against the exact policy gradient of small trees, and where they arrive."""

from dataclasses import replace
from functools import partial
from itertools import product
from math import inf, log

import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.types import ActionScores
from tests.losses.naive import gradients, ragged
from tests.losses.rows import BETA
from tests.losses.test_policy_gradient_optimum import Enumerated, shortfall, world
from tests.losses.trees import Tree

FORMS = {
    "grpo": partial(losses.grpo, beta=BETA),
    "grpo, unscaled": partial(losses.grpo, beta=BETA, scale="none"),
    "grpo, trajectories": partial(losses.grpo, beta=BETA, units="trajectory"),
    "rloo": partial(losses.rloo, beta=BETA),
    "rloo, tokens": partial(losses.rloo, beta=BETA, units="action"),
}
EVERY = pytest.mark.parametrize("name", FORMS)


def exact_gradient(paths, table, reference):
    """The gradient of the regularised objective."""
    leaf = table.clone().requires_grad_()
    (slope,) = torch.autograd.grad(paths.objective(leaf, reference), leaf)
    return slope


def expected(paths, table, reference, behaviour, loss, size):
    """The expectation of a loss's gradient over all groups of this size that the behaviour samples."""
    leaf, total = table.clone().requires_grad_(), 0.0
    chances = paths.probabilities(behaviour).tolist()
    for group in product(range(len(chances)), repeat=size):
        chosen = torch.tensor(group)
        policy, frozen = paths.scores(leaf, chosen=chosen), paths.scores(reference, chosen=chosen)
        chance = torch.tensor([chances[i] for i in group], dtype=torch.float64).prod()
        total = total + chance * loss(paths.batch(behaviour, chosen), policy, frozen).total / size
    return torch.autograd.grad(total, leaf)[0]


# ------------------------------------------------------------------ the policy gradient
@pytest.mark.parametrize(("size", "horizon"), [(2, 2), (3, 1)])
def test_on_fresh_samples_rloo_is_the_policy_gradient_without_bias(size, horizon):
    tree, reference, table, _ = world(horizon=horizon)
    paths = Enumerated(tree)
    slope = exact_gradient(paths, table, reference)
    assert slope.norm() > 0.1
    assert_close(expected(paths, table, reference, table, FORMS["rloo"], size), -slope)
    assert_close(expected(paths, table, reference, table, FORMS["rloo, tokens"], size), -slope)


def test_weights_of_whole_completions_correct_for_older_samples_and_a_cap_does_not():
    tree, reference, table, _ = world(horizon=2)
    paths, behaviour = Enumerated(tree), tree.table(scale=1.0)
    slope = exact_gradient(paths, table, reference)
    assert_close(expected(paths, table, reference, behaviour, partial(FORMS["rloo"], importance_cap=inf), 2), -slope)
    for loss in (partial(FORMS["rloo"], importance_cap=0.5), partial(FORMS["rloo, tokens"], importance_cap=inf)):
        assert (expected(paths, table, reference, behaviour, loss, 2) + slope).norm() > 0.01 * slope.norm()


def test_without_its_scale_grpo_has_the_policy_gradient_times_the_share_of_the_others():
    """The own completion in the mean takes 1 / n of the gradient; the scale changes its direction as well."""
    tree, reference, table, _ = world(horizon=2)
    paths = Enumerated(tree)
    slope = exact_gradient(paths, table, reference)
    assert_close(expected(paths, table, reference, table, FORMS["grpo, unscaled"], 2), -slope / 2)
    scaled = expected(paths, table, reference, table, FORMS["grpo"], 2)
    assert torch.cosine_similarity(-scaled.flatten(), slope.flatten(), dim=0) < 0.999


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_at_the_optimum_every_group_has_a_gradient_of_zero(name, seed):
    tree, reference, table, _ = world(seed)
    paths = Enumerated(tree)
    q, _ = tree.optimum(reference, BETA)
    best = reference + q / BETA
    draw = torch.Generator().manual_seed(seed)
    for at, still in ((best, True), (table, False)):
        leaf = at.clone().requires_grad_()
        chosen = torch.randint(0, len(tree.paths), (5,), generator=draw)
        policy, frozen = paths.scores(leaf, chosen=chosen), paths.scores(reference, chosen=chosen)
        (slope,) = torch.autograd.grad(FORMS[name](paths.batch(at, chosen), policy, frozen).total, leaf)
        assert (float(slope.abs().max()) < 1e-9) == still


def trained(paths, reference, loss, *, steps=140, epochs=2, size=4):
    """The table after `steps` batches of its own samples, dealt to groups at random, `epochs` updates each."""
    table = reference.clone().requires_grad_()
    optimiser = torch.optim.Adam([table], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.97)
    draw, frozen = torch.Generator().manual_seed(0), paths.scores(reference)
    for _ in range(steps):
        chosen = paths.probabilities(table.detach()).multinomial(400, replacement=True, generator=draw)
        batch = replace(paths.batch(table.detach(), chosen), group=torch.arange(400) // size)
        fixed = ActionScores(frozen.logit[chosen], frozen.log_partition[chosen])
        for _ in range(epochs):
            policy = paths.scores(table, chosen=chosen)
            terms = loss(batch, policy, fixed)
            batch = batch if batch.proximal else replace(batch, proximal=policy.detach())
            optimiser.zero_grad()
            (terms.total / terms.count).backward()
            optimiser.step()
        schedule.step()
    return table.detach()


@EVERY
def test_it_arrives_at_the_optimum_of_the_regularised_objective(name):
    tree, reference, _, _ = world(horizon=2)
    paths = Enumerated(tree)
    table = trained(paths, reference, FORMS[name])
    before, after = shortfall(paths, reference, reference), shortfall(paths, table, reference)
    assert before[0] > 0.1
    assert 0 < after[0] < 0.01 * before[0]


# ------------------------------------------------------------------ clipping
def pair(ratio):
    """d loss / d log pi of two completions of one token: the first earns 1 more, both have moved by this ratio."""
    tree = Tree(vocabulary=2, horizon=1)
    batch = tree.trajectories(tree.paths)
    logp = torch.full((2, 1), -1.0, dtype=torch.float64)
    old = ActionScores(logp, torch.zeros_like(logp))
    rewards = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    batch = replace(batch, rewards=rewards, proximal=old, behaviour_logp=logp)
    leaf = (logp + log(ratio)).requires_grad_()
    return lambda loss, **options: torch.autograd.grad(
        loss(batch, ActionScores(leaf, old.log_partition), old, beta=BETA, **options).total, leaf
    )[0].flatten()


@pytest.mark.parametrize("loss", [losses.grpo, losses.rloo])
def test_the_two_clips_stop_what_has_gained_enough_each_on_its_side(loss):
    for ratio, options, kept in (
        (1.25, {}, (False, True)),
        (1.25, {"clip_high": 0.28}, (True, True)),
        (1.25, {"clip_low": 0.28}, (False, True)),
        (0.75, {}, (True, False)),
        (0.75, {"clip_low": 0.28}, (True, True)),
        (0.75, {"clip_high": 0.28}, (True, False)),
    ):
        slope = pair(ratio)(loss, **options)
        assert tuple((slope != 0).tolist()) == kept, (ratio, options)
        assert float(slope[0]) <= 0 <= float(slope[1])


def test_a_whole_completion_is_clipped_where_its_tokens_are_not():
    batch, policy, reference = ragged(lengths=(4, 4), width=4, groups=(0, 0))
    small = torch.full_like(policy.logit, 0.1)  # e^0.1 of each token, e^0.4 of the completion
    moved = ActionScores((batch.proximal.logit + small).requires_grad_(), batch.proximal.log_partition)
    found = {units: losses.rloo(batch, moved, reference, beta=BETA, units=units) for units in ("action", "trajectory")}
    assert float(found["action"].metrics["clip_fraction"][0]) == 0
    assert float(found["trajectory"].metrics["clip_fraction"][0]) == 1
    assert [int(found[units].count) for units in found] == [8, 2]


# ------------------------------------------------------------------ groups
@EVERY
def test_one_completion_of_a_prompt_alone_moves_nothing(name):
    batch, policy, reference = ragged(lengths=(3, 2, 0), width=3, groups=(0, 1, 1))
    terms = FORMS[name](batch, policy, reference)
    assert float(terms.total) == 0
    assert int(terms.count) == (5 if name in ("grpo", "grpo, unscaled", "rloo, tokens") else 2)
    assert not any(g.any() for g in gradients(terms, policy))


def test_a_prompt_whose_completions_earn_the_same_is_counted_and_still_has_a_kl():
    batch, policy, reference = ragged()  # prompt 7 has two completions of one return, prompt 9 one completion
    for loss in FORMS.values():
        same, count = loss(batch, policy, reference).metrics["same_return"]
        assert (int(same), int(count)) == (3, 10)
    of_seven = torch.tensor([False, True, True, *[False] * 9]) & batch.action_mask.any(-1)
    assert gradients(FORMS["rloo"](batch, policy, reference), policy)[0][of_seven].any()


@pytest.mark.parametrize("loss", [losses.grpo, losses.rloo])
def test_a_batch_that_does_not_say_what_it_was_sampled_from_is_refused(loss):
    batch, policy, reference = ragged()
    with pytest.raises(ValueError, match="behaviour_logp"):
        loss(replace(batch, behaviour_logp=None), policy, reference, beta=BETA)
