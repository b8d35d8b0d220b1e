"""What a loss says that it needs of its data and its policy."""

from functools import partial

import pytest

from shiqrun import losses
from shiqrun.losses.requirements import compares_completions, needs_of

PAIRED = {"copg", "dpo", "reward_model"}


def test_supervised_fine_tuning_needs_nothing_and_the_others_need_rewards():
    for name in losses.__all__:
        assert ("rewards" in needs_of(getattr(losses, name))) == (name != "sft")
    assert needs_of(losses.sft) == frozenset()


def test_losses_of_pairs_need_pairs_and_three_losses_a_head_of_their_own():
    for name in losses.__all__:
        assert ("pairs" in needs_of(getattr(losses, name))) == (name in PAIRED)
        assert ("value" in needs_of(getattr(losses, name))) == (name in {"dro_v", "ppo"})
        assert ("score" in needs_of(getattr(losses, name))) == (name == "reward_model")


def test_preferences_need_one_of_a_pair_to_be_better_and_copg_does_not():
    for name in losses.__all__:
        assert ("order" in needs_of(getattr(losses, name))) == (name in {"dpo", "reward_model"})


def test_ppo_alone_needs_to_know_who_acted_and_who_the_policy_was():
    for name in losses.__all__:
        assert ({"behaviour", "proximal"} <= needs_of(getattr(losses, name))) == (name == "ppo")


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
def test_losses_of_pairs_alone_keep_the_completions_of_a_prompt_together(name):
    assert compares_completions(partial(getattr(losses, name))) == (name in PAIRED)


def test_dro_keeps_the_completions_of_a_prompt_together_with_the_groups_mean():
    assert compares_completions(partial(losses.dro, beta=1.0, baseline="group_mean"))
    assert not compares_completions(partial(losses.dro, beta=1.0, baseline="none"))


def test_an_unmarked_loss_needs_rewards():
    assert needs_of(lambda batch, policy, reference: None) == {"rewards"}
