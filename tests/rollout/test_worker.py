"""What a worker samples: a function of its numbers, of the weights it was given, and honest about both."""

import threading
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from shiqrun.errors import InputError, TrainingError
from shiqrun.rollout.mixing import as_rows
from shiqrun.rollout.worker import run_within
from tests.rollout.sampled import Letters, policy, prompts, told, wanted, weights, worker


@pytest.mark.parametrize("portions", [[2, 4], [4, 2], [1] * 6])
def test_what_is_sampled_does_not_depend_on_the_portions(portions):
    made = worker()
    assert told([t for n in portions for t in made.sample(n)]) == wanted(worker().sample(6))
    assert made.number == 6


def test_it_goes_on_from_its_number_as_if_it_had_never_stopped():
    whole = worker(samples_per_prompt=2).sample(20)
    assert told(worker(samples_per_prompt=2, number=8).sample(12)) == wanted(whole[8:])


@pytest.mark.parametrize("other", [{"seed": 4}, {"place": 1}, {"incarnation": 1}])
def test_other_workers_sample_otherwise(other):
    def seen(made):
        return [(t.prompt_id, t.temperature, t.input_ids.tolist()) for t in made.sample(8)]

    assert not any(a == b for a, b in zip(seen(worker()), seen(worker(**other)), strict=True))


def test_uids_are_never_given_twice():
    made = [worker(), worker(place=1), worker(incarnation=1), worker(place=1, incarnation=1)]
    uids = [t.uid for one in made for _ in range(2) for t in one.sample(4)]
    assert len(set(uids)) == 32
    assert [t.uid for t in worker(place=2, incarnation=5, number=7).sample(2)] == ["w2-5-7", "w2-5-8"]


def test_every_prompt_comes_once_a_pass_in_an_order_that_changes():
    asked = prompts(7)
    order = [t.prompt_id for t in worker(asked=asked).sample(35)]
    passes = [order[k : k + 7] for k in range(0, 35, 7)]
    assert all(sorted(one) == sorted(p.prompt_id for p in asked) for one in passes)
    assert len(set(map(tuple, passes))) == 5


def test_completions_of_a_prompt_share_group_temperature_and_prompt_and_nothing_else():
    found = worker(samples_per_prompt=3, temperature=[0.5, 2.0], top_p=1.0).sample(30)
    groups = [found[k : k + 3] for k in range(0, 30, 3)]
    assert len({t.group for t in found}) == 10
    for group in groups:
        assert len({(t.group, t.prompt_id, t.temperature) for t in group}) == 1
        assert len({tuple(t.input_ids.tolist()) for t in group}) == 3
    assert len({t.temperature for t in found}) == 10


def test_temperatures_are_uniform_between_their_bounds():
    drawn = np.array([t.temperature for t in worker(temperature=[0.2, 0.6], max_new_tokens=1).sample(400)])
    assert 0.2 <= drawn.min() < 0.21
    assert 0.59 < drawn.max() <= 0.6
    counts = Counter(np.floor((drawn - 0.2) / 0.1).astype(int).tolist())
    assert sum((counts[k] - 100) ** 2 / 100 for k in range(4)) < 16.3  # chi squared, 3 degrees of freedom, 1 in 1000
    assert {t.temperature for t in worker(temperature=[0.4, 0.4]).sample(5)} == {0.4}


def behaviour(policy, t, top_p):
    """Log-probabilities of a trajectory's actions under the renormalised nucleus at its temperature, by hand."""
    ids = torch.from_numpy(t.input_ids).long()
    logits = policy.causal_lm(ids[None]).logits[0].double()
    found = []
    for at in range(t.start, len(ids)):
        chances = (logits[at - 1] / t.temperature).softmax(-1)
        order = chances.argsort(descending=True)
        reached = chances[order].cumsum(0)
        nucleus = order[: int((reached < top_p).sum()) + 1]
        assert ids[at] in nucleus
        found.append(float((chances[ids[at]] / chances[nucleus].sum()).log()))
    return found


def test_both_log_probabilities_are_those_of_the_policy_that_acted():
    acting = policy(seed=5)
    found = worker(acting, temperature=[0.7, 1.5], top_p=0.8).sample(12)
    batch = as_rows(found, 0, together=False, source="online").collate(range(12))
    scored = acting(batch)
    gap = (scored.logp - batch.acting_logp).masked_fill(~batch.action_mask, 0)
    assert float(gap.abs().max()) < 1e-4
    for t in found:
        assert t.behaviour_logp == pytest.approx(behaviour(acting, t, 0.8), abs=1e-4)
    assert any(abs(t.behaviour_logp - t.policy_logp).max() > 0.1 for t in found)


def test_new_weights_change_what_is_sampled_and_are_named_by_their_version():
    other = policy(seed=9)
    made = worker()
    first = made.sample(4)
    made.load(30, weights(other))
    second = made.sample(4)
    assert [t.version for t in first + second] == [0] * 4 + [30] * 4
    assert told(first) == wanted(worker().sample(4))
    fresh = worker(other, number=4)
    fresh.version = 30
    assert told(second) == wanted(fresh.sample(4))
    stale = worker(number=4).sample(4)
    assert [t.input_ids.tolist() for t in stale] != [t.input_ids.tolist() for t in second]


def test_a_part_of_the_weights_is_enough_to_load():
    """Where LoRA adapters alone are trained, nothing else is sent."""
    acting, made = policy(), worker()
    name, value = next(iter(weights(acting).items()))
    made.load(1, {name: value + 1})
    loaded = weights(made.policy)
    assert torch.equal(loaded.pop(name), value + 1)
    assert all(torch.equal(p, weights(acting)[other]) for other, p in loaded.items())


def test_a_trajectory_says_what_was_asked_answered_and_earned():
    asked = prompts(3)
    for t in worker(asked=asked, max_new_tokens=4, temperature=[1, 1], top_p=1.0).sample(6):
        prompt = next(p for p in asked if p.prompt_id == t.prompt_id)
        assert t.messages == prompt.messages
        assert t.input_ids[: t.start].tolist() == prompt.tokens.tolist()
        assert t.reward == -(len(t.completion) + len(prompt.messages[0]["content"]))
        assert 1 <= len(t.input_ids) - t.start <= 4
        assert (t.source, t.top_p) == ("online", 1.0)
        assert t.ended or len(t.input_ids) - t.start == 4


class Hanging(Letters):
    """Answers when it is told to."""

    def __init__(self):
        self.free = threading.Event()

    def score(self, items, progress=lambda x, _: x):
        self.free.wait(60)
        return super().score(items)


def test_a_reward_that_hangs_is_named_and_given_up_and_nothing_is_made():
    reward = Hanging()
    made = worker(reward=reward, reward_timeout=0.1)
    with pytest.raises(TrainingError, match=r"the reward letters gave no answer within rollout.reward_timeout=0.1 s"):
        made.sample(3)
    reward.free.set()
    assert made.number == 0
    assert told(made.sample(3)) == wanted(worker(reward_timeout=0.1).sample(3))


class Refusing(Letters):
    def score(self, items, progress=lambda x, _: x):
        raise InputError(f"{items[0].source}: cannot be judged")


def test_what_a_reward_refuses_is_told_as_it_says_it():
    with pytest.raises(InputError, match=r"^f:\d: cannot be judged$"):
        worker(reward=Refusing()).sample(3)


def test_work_is_waited_for_as_long_as_it_may_take():
    assert run_within(lambda: time.sleep(0.05) or "done", 60, "slow") == "done"
    with pytest.raises(ZeroDivisionError):
        run_within(lambda: 1 / 0, 60, "broken")


def test_time_is_stamped_when_it_is_scored():
    before = time.time()
    times = [before, *(t.time for t in worker().sample(3)), time.time()]
    assert all(a <= b for a, b in pairwise(times))
