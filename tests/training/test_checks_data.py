"""The rules of loaded data: each finds what it is for, and says which row and what to do."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.batching.rows import Rows
from shiqrun.errors import InputError
from shiqrun.estimates.value_file import PromptRewards
from shiqrun.training import checks_data
from shiqrun.training.plan import Plan
from tests.support.helpers import trajectory

PROMPT = [5, 6, 7]


def row(n, *, reward=1.0, prompt_id="p", source="f.jsonl"):
    rewards = None if reward is None else [reward]
    made = trajectory(n, tokens=[*PROMPT, 8], action_index=[3], rewards=rewards, prompt_id=prompt_id)
    return replace(made, source=f"{source}:{n}")


def rows(*rewards, together=False, **options):
    return Rows([row(n, reward=r, **options) for n, r in enumerate(rewards)], 0, together=together)


def two_prompts(one, other):
    further = trajectory(1, tokens=[9, *PROMPT, 8], action_index=[4], rewards=[other], prompt_id="q")
    return Rows([row(0, reward=one), further], 0)


UNCHECKED = {"same_unit": False, "values": None}


def plan(needs=("rewards",), *, algo=None, train_on="assistant", reward=None, **words):
    """The properties of a plan that the rules read."""
    made = SimpleNamespace(
        loss=partial(print, **words),
        needs=frozenset(needs),
        name="shiq_x",
        names={"algo": "shiq_x", "data": "letters"},
        algo=SimpleNamespace(
            **{"reward_offset": "none", "monte_carlo": 0.0, "targets": "x.jsonl", **UNCHECKED} | (algo or {})
        ),
        data=SimpleNamespace(train_on=train_on),
        source=SimpleNamespace(right_and_wrong=None, paths={}, parts={}),
        reward=reward,
    )
    made.link, made.top = Plan.link.fget(made), Plan.top.fget(made)
    return made


def right_or_wrong(right, wrong):
    return SimpleNamespace(right=right, about=lambda: {"wrong": wrong}, fingerprint=lambda: "its own")


KNOWN = {"p": PromptRewards(np.array([0.0, 1.0]), tokens_key(np.array(PROMPT)))}
BROKEN = {
    "every_trajectory_has_a_reward": (
        plan(),
        rows(1.0, None),
        "1 of 2 trajectories have none, first f.jsonl:1",
    ),
    "actions_are_the_policys": (plan(train_on="response"), rows(1.0), "data.train_on=response is for algo=sft"),
    "group_means_leave_rewards": (
        plan(algo={"reward_offset": "group_mean"}),
        Rows([row(0, prompt_id="p"), row(1, prompt_id="q")], 0),
        "each prompt has one completion",
    ),
    "some_pair_is_decided": (plan(("order",)), rows(1.0, 1.0, together=True), "every pair of the data is a tie"),
    "both_kinds_are_there": (
        plan(("kl_estimate",), threshold=0.5),
        two_prompts(1.0, 2.0),
        "needs desirable and undesirable trajectories, but none of 2 is undesirable: returns are from 1 to 2",
    ),
}
FINE = {
    "every_trajectory_has_a_reward": [(plan(), rows(1.0, 0.0)), (plan(()), rows(None))],
    "actions_are_the_policys": [(plan(), rows(1.0)), (plan((), train_on="response"), rows(1.0))],
    "group_means_leave_rewards": [(plan(algo={"reward_offset": "group_mean"}), rows(1.0, 2.0)), (plan(), rows(1.0))],
    "some_pair_is_decided": [(plan(("order",)), rows(1.0, 2.0, together=True)), (plan(), rows(1.0, 1.0))],
    "both_kinds_are_there": [
        (plan(("kl_estimate",), threshold=1.5), two_prompts(1.0, 2.0)),
        (plan(threshold=0.5), rows(1.0, 2.0)),
    ],
}


def test_every_rule_of_a_split_has_a_case():
    assert BROKEN.keys() == FINE.keys() == {rule.__name__ for rule in checks_data.RULES}


@pytest.mark.parametrize("rule", checks_data.RULES, ids=lambda rule: rule.__name__)
def test_a_rule_finds_what_it_is_for_and_nothing_else(rule):
    broken, data, told = BROKEN[rule.__name__]
    assert told in rule(broken, data)
    assert [rule(*fine) for fine in FINE[rule.__name__]] == [None, None]


def test_what_a_rule_finds_ends_the_run():
    with pytest.raises(InputError, match="needs rewards"):
        checks_data.check_data(plan(), SimpleNamespace(train=rows(1.0, None)))
    checks_data.check_data(plan(), SimpleNamespace(train=rows(1.0, 0.0)))


@pytest.mark.parametrize(
    ("offset", "rewards", "told"),
    [("none", (0.0, -1.0), True), ("none", (0.0, 0.0), False), ("none", (1.0, -1.0), False), ("mean", (0, -1), False)],
)
def test_negative_rewards_alone_are_warned_of(offset, rewards, told):
    warning = checks_data.warning_of_levels(plan(algo={"reward_offset": offset}), rows(*rewards))
    assert bool(warning) == told
    assert not told or "no return is above 0 (mean -0.5)" in warning


def test_a_prompt_without_value_is_named():
    told = checks_data.prompts_have_values(rows(1.0, 0.0, prompt_id="zz"), KNOWN)
    assert "2 of 2 trajectories have a prompt without value, first f.jsonl:0 (prompt zz)" in told


def test_a_value_of_another_prompt_with_the_same_id_is_named():
    told = checks_data.prompts_have_values(rows(1.0), {"p": KNOWN["p"]._replace(tokens="other")})
    assert "1 of 1 trajectories have another prompt than the one that was valued" in told
    assert "f.jsonl:0 (prompt p)" in told


def test_valued_prompts_pass():
    assert checks_data.prompts_have_values(rows(1.0), KNOWN) is None


def test_a_prompt_to_answer_without_value_is_named():
    prompts = [SimpleNamespace(prompt_id=name, source=f"f:{name}") for name in "pq"]
    assert "1 of 2 prompts that would be answered have no value, first f:q" in checks_data.answered_prompts_have_values(
        prompts, {"p": 0.0}
    )
    assert checks_data.answered_prompts_have_values(prompts, {"p": 0.0, "q": 0.0}) is None
    assert checks_data.answered_prompts_have_values(prompts, None) is None


@pytest.mark.parametrize(
    ("made", "logged", "told"),
    [
        (plan(reward=right_or_wrong(1.0, 0.0)), (1.0, 0.5), "the data's rewards are 1 and 0.5, those of the values 1"),
        (plan(), (1.0, 0.5), "the data's rewards are 1 and 0.5, those of algo.values 1 and 0; make them agree"),
        (plan(link="cross_entropy"), (1.0, 0.0), "a reward is 1, but the cross-entropy takes 0 for the largest"),
        (plan(algo={"monte_carlo": 1.0}), (1.0, 0.0), "a reward is 1, but the cross-entropy takes 0"),
        (plan(reward=right_or_wrong(1.0, 0.0)), (1.0, 0.0), None),
        (plan(link="cross_entropy", top=1.0), (1.0, 0.0), None),
        (plan(link="square"), (1.0,), None),
        (plan(algo={"same_unit": True}), (1.0, 0.5), None),
    ],
)
def test_returns_have_the_unit_of_the_values(made, logged, told):
    found = checks_data.returns_have_the_unit_of_values(made, [rows(*logged)], KNOWN)
    assert found is None if told is None else told in found


@pytest.mark.parametrize(
    ("logged", "same_unit", "refused", "warned"),
    [
        ((9.0, 2.0), False, True, False),
        ((0.3127, -1.4159), False, False, True),
        ((0.3127, -1.4159), True, False, False),
        ((0.125,), False, False, False),
    ],
)
def test_returns_beside_values_of_many_levels_are_refused_or_warned_of(logged, same_unit, refused, warned):
    known = {"p": KNOWN["p"]._replace(rewards=np.array([0.125, -0.4001, 0.7]))}
    made = plan(algo={"same_unit": same_unit})
    found = checks_data.returns_have_the_unit_of_values(made, [rows(*logged)], known)
    assert (found is not None) == refused
    assert not refused or "rewards are 9 and 2, those of algo.values 0.7 and 0.125 and -0.4001" in found
    warning = checks_data.warning_of_values(made, [rows(*logged)], known)
    assert (warning is not None) == warned
    assert not warned or "cannot be known to have one unit" in warning


def test_no_target_at_all_is_found():
    assert "algo.targets=x.jsonl: none of its trajectories" in checks_data.some_action_has_a_target(plan(), 0)
    assert checks_data.some_action_has_a_target(plan(), 1) is None
