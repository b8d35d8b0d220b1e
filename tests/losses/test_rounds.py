"""A reference that moves on enumerated trees: what rounds add up to."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch

from shiqrun import losses
from tests.losses.naive import ragged
from tests.losses.rows import BETA
from tests.losses.test_fixed_points import world
from tests.losses.trees import Tree, kl, minimised


def round_of(loss, tree, reference):
    """The table that minimises a loss with this reference, from there."""
    batch, frozen = tree.trajectories(), tree.scores(reference)
    return minimised(lambda table: loss(batch, tree.scores(table), frozen), reference)


@pytest.mark.parametrize("name", ["copg", "shiq"])
def test_after_m_rounds_the_policy_is_the_optimum_at_an_mth_of_beta(name):
    tree, reference, _ = world(vocabulary=3, horizon=2)
    loss, table = partial(getattr(losses, name), beta=BETA), reference
    for m in (1, 2, 3):
        table = round_of(loss, tree, table)
        best = tree.best_probabilities(reference, BETA / m)
        assert kl(tree.probabilities(table), best) < 1e-8
        assert kl(tree.probabilities(table), tree.best_probabilities(reference, BETA / (m + 1))) > 1e-4
    assert torch.isfinite(table).all()


# ------------------------------------------------------------------ OAPL, whose reference is the last round's policy
BANDIT = 6


def arrived(size, **options):
    """(KL to the optimum, KL of the reference to it) of OAPL over all groups of this size, of a bandit of even arms."""
    tree = Tree(vocabulary=BANDIT, horizon=1, seed=3)
    reference = torch.zeros(1, BANDIT, dtype=torch.float64)
    groups = [*product(range(BANDIT), repeat=size)]
    paths = [tree.paths[arm] for group in groups for arm in group]
    frozen = tree.scores(reference, paths)
    batch = replace(
        tree.trajectories(paths),
        group=torch.arange(len(groups)).repeat_interleave(size),
        behaviour_logp=frozen.logp,
    )
    loss = partial(losses.oapl, beta=BETA, **options)
    found = minimised(lambda table: loss(batch, tree.scores(table, paths), frozen), reference)
    best = tree.best_probabilities(reference, BETA)
    return kl(tree.probabilities(found), best), kl(tree.probabilities(reference), best)


def test_oapl_is_nearer_to_the_optimum_the_more_completions_a_prompt_has():
    """The value of a few completions leans towards the return of the own one."""
    found = [arrived(size)[0] for size in (2, 3, 4)]
    start = arrived(2)[1]
    assert start > found[0] > found[1] > found[2] > 1e-4
    assert found[2] < 0.15 * start


def test_oapl_of_the_whole_reference_is_at_the_optimum_if_both_temperatures_are_beta():
    tree, reference, _ = world(vocabulary=BANDIT, horizon=1)
    even = torch.zeros_like(reference)
    batch, frozen = tree.trajectories(), tree.scores(even)  # each arm once: the even reference's own shares
    batch = replace(batch, behaviour_logp=frozen.logp)
    for group_beta, at_optimum in ((None, True), (BETA, True), (2 * BETA, False)):
        loss = partial(losses.oapl, beta=BETA, group_beta=group_beta)
        found = minimised(lambda table, loss=loss: loss(batch, tree.scores(table), frozen), even)
        apart = kl(tree.probabilities(found), tree.best_probabilities(even, BETA))
        assert (apart < 1e-8) == at_optimum


def test_a_batch_that_does_not_say_what_it_was_sampled_from_is_refused():
    batch, policy, reference = ragged()
    with pytest.raises(ValueError, match="behaviour_logp"):
        losses.oapl(replace(batch, behaviour_logp=None), policy, reference, beta=BETA)


def test_the_gap_to_the_sampler_is_logged():
    batch, policy, reference = ragged()
    gap, count = losses.oapl(batch, policy, reference, beta=BETA).metrics["sampler_gap"]
    mask = batch.action_mask
    assert float(gap) == pytest.approx(float((reference.logp - batch.behaviour_logp).abs()[mask].sum()))
    assert int(count) == int(mask.sum())
