"""What a loss says that it needs of its data and its policy."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from shiqrun import losses
from shiqrun.losses.anchor import anchor
from shiqrun.losses.requirements import compares_completions, hyperparameters, needs, needs_of, unit_count
from shiqrun.losses.soft_policy import monte_carlo
from shiqrun.types import LossTerms
from tests.losses.naive import LOSSES, ragged

PAIRED = {"copg", "dpo", "ipo", "reward_model"}


def test_supervised_fine_tuning_needs_nothing_and_the_others_need_rewards():
    for name in losses.__all__:
        assert ("rewards" in needs_of(getattr(losses, name))) == (name != "sft")
    assert needs_of(losses.sft) == frozenset()


def test_losses_of_pairs_need_pairs_and_four_losses_a_head_of_their_own():
    for name in losses.__all__:
        assert ("pairs" in needs_of(getattr(losses, name))) == (name in PAIRED)
        assert ("value" in needs_of(getattr(losses, name))) == (name in {"dro_v", "oreo", "ppo"})
        assert ("score" in needs_of(getattr(losses, name))) == (name == "reward_model")


def test_preferences_need_one_of_a_pair_to_be_better_and_copg_does_not():
    for name in losses.__all__:
        assert ("order" in needs_of(getattr(losses, name))) == (name in {"dpo", "ipo", "reward_model"})


def test_policy_gradients_alone_need_to_know_who_acted_and_who_the_policy_was():
    for name in losses.__all__:
        assert ({"behaviour", "proximal"} <= needs_of(getattr(losses, name))) == (name in {"ppo", "grpo", "rloo"})


def test_a_bound_loss_needs_what_the_loss_needs():
    assert needs_of(partial(partial(losses.sft))) == frozenset()
    assert needs_of(partial(partial(losses.shiq, beta=1.0), lam=0.5)) == {"rewards"}
    assert needs_of(partial(losses.dpo, beta=1.0)) == {"rewards", "pairs", "order"}
    assert needs_of(partial(losses.copg, beta=1.0)) == {"rewards", "pairs"}


def test_dro_needs_a_group_only_with_the_groups_mean():
    assert needs_of(losses.dro) == {"rewards"}
    assert needs_of(partial(losses.dro, beta=1.0, baseline="none")) == {"rewards"}
    assert needs_of(partial(losses.dro, beta=1.0, baseline="group_mean")) == {"rewards", "group"}


def test_of_two_bindings_the_outer_one_says_whether_a_group_is_needed():
    inner = partial(losses.dro, beta=1.0, baseline="group_mean")
    assert needs_of(partial(inner, baseline="none")) == {"rewards"}
    assert needs_of(partial(partial(losses.dro, baseline="none"), baseline="group_mean")) == {"rewards", "group"}


@pytest.mark.parametrize("name", losses.__all__)
def test_losses_of_pairs_and_of_groups_alone_keep_the_completions_of_a_prompt_together(name):
    assert compares_completions(partial(getattr(losses, name))) == (name in PAIRED | {"grpo", "oapl", "rloo"})


def test_dro_keeps_the_completions_of_a_prompt_together_with_the_groups_mean():
    assert compares_completions(partial(losses.dro, beta=1.0, baseline="group_mean"))
    assert not compares_completions(partial(losses.dro, beta=1.0, baseline="none"))


def test_an_unmarked_loss_needs_rewards():
    assert needs_of(lambda batch, policy, reference: None) == {"rewards"}


# ------------------------------------------------------------------ units without scores
def declared(loss):
    """What the innermost function says of itself."""
    while isinstance(loss, partial):
        loss = loss.func
    return loss.requirements


@pytest.mark.parametrize("loss", [getattr(losses, name) for name in losses.__all__] + [anchor, monte_carlo])
def test_every_loss_declares_how_its_units_are_counted(loss):
    assert declared(loss).units is not None


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=list(LOSSES))
def test_units_counted_without_scores_are_those_of_the_loss(loss):
    batch, policy, reference = ragged()
    assert unit_count(loss, batch) == loss(batch, policy, reference).count


def test_qrpo_alone_needs_quantiles():
    for name in losses.__all__:
        assert ("quantile" in needs_of(getattr(losses, name))) == (name == "qrpo")


def test_oreo_alone_needs_the_kl_over_the_vocabulary_unless_its_weight_is_zero():
    for name in losses.__all__:
        assert ("vocabulary_kl" in needs_of(getattr(losses, name))) == (name == "oreo")
    assert "vocabulary_kl" in needs_of(partial(losses.oreo, beta=1.0, kl_reg=1e-9))
    assert needs_of(partial(losses.oreo, beta=1.0, kl_reg=0.0)) == {"rewards", "value"}
    assert needs_of(partial(losses.oreo, beta=1.0, kl_reg=0)) == {"rewards", "value"}


def test_kto_alone_needs_an_estimate_of_the_kl():
    for name in losses.__all__:
        assert ("kl_estimate" in needs_of(getattr(losses, name))) == (name == "kto")


@pytest.mark.parametrize("loss", [losses.ppo, losses.spo, losses.spo_nonterminal, losses.spo_advantage, monte_carlo])
def test_so_are_the_units_of_losses_that_read_more_of_a_batch(loss):
    batch, policy, reference = ragged()
    target = batch.rewards.masked_fill(batch.rewards > 0, torch.nan)
    batch = replace(batch, prompt_value=batch.rewards[:, 0], behaviour_logp=-batch.rewards.abs(), value_target=target)
    count = loss(batch, policy, reference, beta=0.7).count
    assert count > 0
    assert unit_count(partial(loss, beta=0.7), batch) == count


def test_a_loss_is_not_evaluated_to_count_its_units():
    def refuses(*_, **__):
        raise AssertionError

    refuses.requirements = losses.shiq.requirements
    batch, _, _ = ragged()
    assert unit_count(partial(refuses, beta=1.0), batch) == batch.action_mask.sum()


def test_the_units_of_pairs_depend_on_the_bound_pairing_and_ties():
    batch, _, _ = ragged()
    numbers = {
        (name, pairing): int(unit_count(partial(getattr(losses, name), beta=1.0, pairing=pairing), batch))
        for name in ("copg", "dpo", "ipo")
        for pairing in ("all", "best_worst")
    }
    # by hand from LEVELS of `naive`: 6 + 1 + 3 pairs, of which one in the first group and that of the second are ties
    decided = {(name, pairing): n for name in ("dpo", "ipo") for pairing, n in (("all", 8), ("best_worst", 2))}
    assert numbers == {("copg", "all"): 10, ("copg", "best_worst"): 3, **decided}


def test_units_of_a_loss_that_declares_no_count_are_those_it_returns():
    def own(batch, policy, reference, *, weight):
        return LossTerms(policy.logit.sum(), weight * torch.ones(()))

    batch, _, _ = ragged()
    assert unit_count(partial(own, weight=3.0), batch) == 3.0


def test_hyperparameters_are_a_losss_own_defaults_under_what_partials_bind():
    @needs("rewards", group_if={"baseline": "group_mean"}, units=lambda batch, weight: torch.full((), weight))
    def own(batch, policy, reference, *, beta=0.1, weight=2.0, baseline="group_mean", lam):
        raise NotImplementedError

    bound = partial(partial(own, lam=0.5, beta=3.0), beta=4.0)
    assert hyperparameters(own) == {"beta": 0.1, "weight": 2.0, "baseline": "group_mean"}
    assert hyperparameters(bound) == {"beta": 4.0, "weight": 2.0, "baseline": "group_mean", "lam": 0.5}
    assert needs_of(own) == {"rewards", "group"}
    assert needs_of(partial(own, baseline="none")) == {"rewards"}
    assert unit_count(bound, ragged()[0]) == 2.0
