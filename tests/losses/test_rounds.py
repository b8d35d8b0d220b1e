"""A reference that moves on enumerated trees: what rounds add up to."""

from functools import partial

import pytest
import torch

from shiqrun import losses
from tests.losses.rows import BETA
from tests.losses.test_fixed_points import world
from tests.losses.trees import kl, minimised


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
