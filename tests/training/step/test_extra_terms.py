"""What is added to a loss weighs what it says, whatever the loss counts and however a step is cut."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from shiqrun.losses import shiq, spo, spo_advantage
from shiqrun.losses.anchor import anchor
from shiqrun.losses.requirements import unit_count
from shiqrun.losses.soft_policy import monte_carlo
from shiqrun.settings import AlgoSettings
from shiqrun.training.step.extra_terms import ExtraTerms
from shiqrun.training.step.sums import sum_parts
from shiqrun.types import ActionScores, Trajectories

BETA = 0.3
SETTINGS = AlgoSettings(reference="frozen", reward_offset="none", anchor=0.7, anchor_tokens=2, monte_carlo=1.9)


def batch(rows=5, actions=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(actions) < torch.tensor([4, 2, 1, 3, 4])[:rows, None]
    target = -torch.rand(rows, actions, generator=draw, dtype=torch.float64)
    target[torch.rand(rows, actions, generator=draw) < 0.5] = torch.nan
    ids = torch.randint(0, 9, (rows, actions + 2), generator=draw)
    return Trajectories(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        action_index=torch.arange(2, actions + 2).expand(rows, actions).clone(),
        action_mask=mask,
        rewards=-torch.rand(rows, actions, generator=draw, dtype=torch.float64).masked_fill(~mask, 0),
        group=torch.arange(rows),
        prompt_value=-torch.rand(rows, generator=draw, dtype=torch.float64),
        value_target=target,
        anchor_tokens=torch.randint(0, 9, (rows, actions, 2), generator=draw),
    )


def scores(rows=5, actions=4, seed=1):
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ActionScores(draw(rows, actions), 2 + draw(rows, actions), further=draw(rows, actions, 2))


def cut(whole, rows):
    parts = {name: value[rows] for name, value in whole.__dict__.items() if isinstance(value, torch.Tensor)}
    return replace(whole, **parts)


@pytest.mark.parametrize("loss", [partial(spo, beta=BETA), partial(spo_advantage, beta=BETA), partial(shiq, beta=BETA)])
@pytest.mark.parametrize("parts", [[slice(0, 5)], [slice(0, 2), slice(2, 3), slice(3, 5)]])
def test_each_addition_is_divided_by_units_of_its_own(loss, parts):
    whole, policy, reference = batch(), scores(), scores(seed=2)
    own = loss(whole, policy, reference)
    held = anchor(whole, policy, reference, kappa=0.7, beta=BETA)
    told = monte_carlo(whole, policy, reference, beta=BETA)
    assert told.count not in (0, own.count, held.count)
    expected = own.total / own.count + held.total / held.count + 1.9 * told.total / told.count
    made = ExtraTerms(loss, SETTINGS, BETA)
    batches = [cut(whole, rows) for rows in parts]
    names, both = sum_parts([made.counts(part, unit_count(made.loss, part)) for part in batches])
    weights = made.weights({name: (pair[0], pair[1]) for name, pair in zip(names, both, strict=True)})
    total = 0
    for part, rows in zip(batches, parts, strict=True):
        ours, theirs = (
            ActionScores(s.logit[rows], s.log_partition[rows], further=s.further[rows]) for s in (policy, reference)
        )
        terms, _ = made.add_to(loss(part, ours, theirs), part, ours, theirs, weights)
        total += terms.total
    assert total / own.count == pytest.approx(float(expected))


def test_the_monte_carlo_term_has_the_loss_s_own_top_and_eps():
    whole, policy, reference = batch(), scores(), scores(seed=2)
    made = ExtraTerms(partial(spo, beta=BETA, top=2.0, eps=0.1), replace(SETTINGS, anchor=0.0), BETA)
    names, both = sum_parts([made.counts(whole, unit_count(made.loss, whole))])
    weights = made.weights({name: (pair[0], pair[1]) for name, pair in zip(names, both, strict=True)})
    own = made.loss(whole, policy, reference)
    terms, _ = made.add_to(own, whole, policy, reference, weights)
    told = monte_carlo(whole, policy, reference, beta=BETA, top=2.0, eps=0.1)
    assert float(terms.total - own.total) == pytest.approx(float(1.9 * told.total / told.count * own.count))
    assert float(told.total) != pytest.approx(float(monte_carlo(whole, policy, reference, beta=BETA).total))


def test_without_weights_there_is_nothing_to_add():
    assert not ExtraTerms(partial(spo, beta=BETA), replace(SETTINGS, anchor=0.0, monte_carlo=0.0), BETA)
    assert ExtraTerms(partial(spo, beta=BETA), replace(SETTINGS, anchor=0.0), BETA)
