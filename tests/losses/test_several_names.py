"""Methods of other papers that are losses of ours: the papers' forms have our gradient times a constant."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from shiqrun import losses
from shiqrun.config.compose import compose
from shiqrun.config.locate import locate
from shiqrun.estimates.prompt_values import soft_values
from shiqrun.estimates.value_file import PromptRewards
from shiqrun.losses.requirements import hyperparameters
from tests.losses.naive import numbers, ragged
from tests.losses.rows import BETA, rows_of

pytestmark = pytest.mark.usefixtures("at_home")
ETA = 1 / BETA
VALUE_BETA, REFERENCE_EARNED = 0.45, (0.0, 1.0, -0.5, 1.0)


def total_of(values):
    return sum(values, 0.0)


def mean(values):
    return total_of(values) / len(values)


def agro(ratios, rewards):
    """1/2 Var(R - beta log-ratio), the variance over K completions that divides by K."""
    levels = [r - BETA * d for r, d in zip(rewards, ratios, strict=True)]
    return mean([(u - mean(levels)) ** 2 for u in levels]) / 2


def tba(ratios, rewards):
    """(log Z + log pi - log pi_ref - R / beta)^2, with VarGrad's log Z held fixed; the mean over K completions."""
    log_z = mean([(r / BETA - d).detach() for r, d in zip(rewards, ratios, strict=True)])
    return mean([(log_z + d - r / BETA) ** 2 for r, d in zip(rewards, ratios, strict=True)])


def gvpo(ratios, rewards):
    """1/2 ((R_theta - mean R_theta) - (R - mean R))^2, R_theta = beta log-ratio, its mean held fixed; over K - 1."""
    implicit = [BETA * d for d in ratios]
    centre = mean(implicit).detach()
    parts = [((i - centre) - (r - mean(rewards))) ** 2 / 2 for i, r in zip(implicit, rewards, strict=True)]
    return total_of(parts) / (len(rewards) - 1)


def rebel(ratios, rewards):
    """(1/eta (log-ratio - log-ratio') - (R - R'))^2 over pairs, from the policy of the round, the reference."""
    places = range(len(ratios))
    pairs = [(i, j) for i in places for j in places if i < j]
    return total_of([((ratios[i] - ratios[j]) / ETA - (rewards[i] - rewards[j])) ** 2 for i, j in pairs])


def rebel_in_nats(ratios, rewards):
    """((log-ratio - log-ratio') - eta (R - R'))^2, as the paper's code has it."""
    places = range(len(ratios))
    pairs = [(i, j) for i in places for j in places if i < j]
    return total_of([((ratios[i] - ratios[j]) - ETA * (rewards[i] - rewards[j])) ** 2 for i, j in pairs])


FORMS = {
    "agro": (agro, lambda k: 1 / (2 * k)),
    "tba": (tba, lambda k: 1 / (k * BETA**2)),
    "gvpo": (gvpo, lambda k: 1 / (2 * (k - 1))),
    "rebel": (rebel, lambda k: 1.0),
    "rebel in nats": (rebel_in_nats, lambda k: 1 / BETA**2),
}
"""Name -> the paper's form of one prompt's K completions, from log-ratios and returns; its gradient over ours."""


def optimal_advantage(ratios, rewards):
    """(beta_2 log-ratio - (R - V*))^2, V* = beta_1 log mean exp(r / beta_1) over what the reference's answers earn."""
    value = VALUE_BETA * math.log(mean([math.exp(r / VALUE_BETA) for r in REFERENCE_EARNED]))
    return total_of([(BETA * d - (r - value)) ** 2 for d, r in zip(ratios, rewards, strict=True)])


def composed(name):
    """The function that a name configures, with its hyperparameters and another beta."""
    settings = compose("train", [f"algo={name}", f"algo.beta={BETA}"]).algo
    function = locate("algo._target_", settings._target_)
    own = {key: settings[key] for key in ("beta", *hyperparameters(function)) if key in settings}
    return lambda *problem: function(*problem, **own)


@pytest.mark.parametrize("name", FORMS)
def test_a_method_of_another_paper_has_our_gradient_times_a_constant(name):
    paper, constant = FORMS[name]
    loss = composed(name.partition(" ")[0])
    for members in (2, 3, 5):
        lengths = (4, 2, 0, 3, 1, 5)[: members + (members > 2)]
        batch, policy, reference = ragged(lengths=lengths, width=5, seed=members, groups=(3,) * len(lengths))
        rows = [row for row in rows_of(batch, policy, reference) if row.r]
        assert len(rows) == members
        theirs = paper([row.total_ratio() for row in rows], [sum(row.r) for row in rows])
        expected = torch.autograd.grad(theirs, numbers(policy), materialize_grads=True)
        ours = torch.autograd.grad(loss(batch, policy, reference).total, numbers(policy), materialize_grads=True)
        assert max(float(g.abs().max()) for g in ours) > 0.1
        assert_close(list(expected), [constant(members) * g for g in ours])


def test_optimal_advantage_regression_is_spo_with_prompt_values_at_their_own_temperature():
    """The value is that of the run: `soft_values` at `algo.value_beta`, of the rewards that a file has."""
    settings = compose("train", ["algo=a2po", f"algo.value_beta={VALUE_BETA}", f"algo.beta={BETA}"]).algo
    known = {"p": PromptRewards(np.array(REFERENCE_EARNED), "")}
    value = soft_values(known, settings.value_beta or settings.beta)["p"]
    batch, policy, reference = ragged(lengths=(4, 2, 0, 3), width=5)
    rows = [row for row in rows_of(batch, policy, reference) if row.r]
    theirs = optimal_advantage([row.total_ratio() for row in rows], [sum(row.r) for row in rows])
    batch = replace(batch, prompt_value=torch.full((4,), value, dtype=torch.float64))
    ours = composed("a2po")(batch, policy, reference)
    assert settings.link == "square"
    assert_close(ours.total, theirs)
    expected = torch.autograd.grad(theirs, numbers(policy), materialize_grads=True)
    assert_close(list(torch.autograd.grad(ours.total, numbers(policy), materialize_grads=True)), list(expected))


def test_prompts_with_different_numbers_of_completions_weigh_as_their_squares_do():
    """A step sums squares over all its prompts, so a prompt's constant is that of its own number of completions."""
    batch, policy, reference = ragged(lengths=(2, 3, 1, 4, 2), width=4, groups=(1, 1, 2, 2, 2))
    rows = rows_of(batch, policy, reference)
    groups = [[row for row in rows if row.group == g] for g in (1, 2)]
    weighted = total_of(
        2 * len(group) * agro([row.total_ratio() for row in group], [sum(row.r) for row in group]) for group in groups
    )
    assert_close(losses.dro(batch, policy, reference, beta=BETA, baseline="group_mean").total, weighted)
