"""What a loss says that it needs of its data."""

from functools import partial

from shiqrun import losses
from shiqrun.losses.requirements import needs_of


def test_supervised_fine_tuning_needs_nothing_and_the_others_need_rewards():
    needs = {name: needs_of(getattr(losses, name)) for name in losses.__all__}
    assert needs.pop("sft") == frozenset()
    assert set(needs.values()) == {frozenset({"rewards"})}


def test_a_bound_loss_needs_what_the_loss_needs():
    assert needs_of(partial(partial(losses.sft))) == frozenset()
    assert needs_of(partial(partial(losses.shiq, beta=1.0), lam=0.5)) == {"rewards"}


def test_an_unmarked_loss_needs_rewards():
    assert needs_of(lambda batch, policy, reference: None) == {"rewards"}
