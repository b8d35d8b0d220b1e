"""QRPO: its partition function, what it is beside SPO, and where minimising it arrives."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.batching.rows import Rows
from shiqrun.estimates.quantiles import return_quantiles
from shiqrun.losses.quantile import uniform_value
from tests.losses.naive import gradients, ragged
from tests.losses.test_minimisers import without_value
from tests.losses.trees import Tree, kl, minimised
from tests.support import helpers

BETA = 0.6  # of `without_value`


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0, 7.0])
def test_the_value_of_a_uniform_quantile_is_its_integral(beta):
    """The mean over the middles of a fine grid."""
    grid = [exp(((i + 0.5) / 200_000 - 1) / beta) for i in range(200_000)]
    assert uniform_value(beta) == pytest.approx(1 + beta * log(sum(grid) / len(grid)), abs=1e-7)


@pytest.mark.parametrize("beta", [1e-4, 3e-4, 1e-3])
def test_at_the_papers_temperatures_the_value_is_that_of_its_code(beta):
    assert uniform_value(beta) == pytest.approx(beta * (log(beta) + 1 / beta), abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_qrpo_is_spo_with_the_quantile_as_return_and_the_uniform_value_as_prompt_value(seed):
    batch, policy, reference = ragged(seed=seed)
    ranked = torch.zeros_like(batch.rewards)
    ranked[:, 0] = batch.quantile
    value = torch.full_like(batch.quantile, uniform_value(BETA))
    spo = losses.spo(replace(batch, rewards=ranked, prompt_value=value), policy, reference, beta=BETA)
    found = losses.qrpo(batch, policy, reference, beta=BETA)
    assert_close(found.total, spo.total)
    assert_close(found.count, spo.count)
    assert_close(gradients(found, policy), gradients(spo, policy))


def test_the_size_of_a_reward_is_not_read():
    batch, policy, reference = ragged()
    other = replace(batch, rewards=torch.full_like(batch.rewards, torch.nan))
    assert_close(*(losses.qrpo(b, policy, reference, beta=BETA).total for b in (batch, other)))


def on_quantiles(tree, reference, beta=BETA):
    """QRPO of a table on every path of the tree, with the exact quantiles of the reference."""
    batch = replace(tree.trajectories(), quantile=torch.tensor(tree.quantiles(reference), dtype=torch.float64))
    frozen = tree.scores(reference)
    return lambda table: losses.qrpo(batch, tree.scores(table), frozen, beta=beta)


def test_minimising_arrives_beside_the_best_policy_where_quantiles_are_not_uniform():
    """docs/math.md, "QRPO": a tree has 15 returns, so that the mean of exp(q / beta) is not the uniform one."""
    tree = Tree(vocabulary=3, horizon=3)
    reference = tree.table()
    quantiles = tree.quantiles(reference)
    assert max(quantiles) == pytest.approx(1)
    found = tree.probabilities(minimised(on_quantiles(tree, reference), reference))
    biased = without_value(tree.probabilities(reference), [q - uniform_value(BETA) for q in quantiles])
    best = tree.best_probabilities(reference, BETA, quantiles)
    assert kl(found, biased) < 1e-8
    assert kl(biased, best) > 1e-4
    assert kl(found, best) == pytest.approx(kl(biased, best), rel=1e-4)


def test_with_more_returns_the_bias_goes_to_zero():
    """Of n equally likely returns, the soft value of the quantiles is too large by about 1 / (2n)."""
    bias = []
    for n in (4, 16, 64):
        tree = Tree(vocabulary=n, horizon=1)
        reference = torch.zeros(1, n, dtype=torch.float64)
        quantiles = tree.quantiles(reference)
        assert sorted(quantiles) == pytest.approx([(i + 1) / n for i in range(n)])
        value = BETA * log(sum(exp(q / BETA) for q in quantiles) / n)
        assert (value - uniform_value(BETA)) * 2 * n == pytest.approx(1, rel=0.2 / n)
        found = tree.probabilities(minimised(on_quantiles(tree, reference), reference))
        bias.append(kl(found, tree.best_probabilities(reference, BETA, quantiles)))
    assert bias[0] > 10 * bias[1] > 100 * bias[2] > 0


def test_quantiles_count_the_references_rewards_at_or_below_a_return_in_the_precision_of_returns():
    returns = (0.7, 0.69, -3.0, 5.0)
    trajectories = [
        helpers.trajectory(n, tokens=[1, 2, 3], action_index=[1, 2], rewards=[r - 0.5, 0.5], prompt_id="ab"[n // 2])
        for n, r in enumerate(returns)
    ]
    known = {"a": np.array([0.1, 0.7, 0.7, -2.0, 5.0]), "b": np.array([5.0, 5.1, 4.0])}
    found = return_quantiles(Rows(trajectories, pad=0), known)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([4 / 5, 2 / 5, 0, 2 / 3])
