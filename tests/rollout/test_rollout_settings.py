"""How a batch is divided among its sources, and settings that cannot be."""

from itertools import product

import pytest

from shiqrun.errors import InputError
from tests.rollout.sampled import settings

EVERY = {"logged": 1, "replay": 1, "annotated": 1}


@pytest.mark.parametrize(
    ("batch", "options", "expected"),
    [
        (16, {}, {"online": 8, "logged": 8}),
        (16, {"offline": 0}, {"online": 16}),
        (16, {"offline": 0, "sources": {}}, {"online": 16}),
        (16, {"offline": 0.25, "sources": {"replay": 5}}, {"online": 12, "replay": 4}),
        (128, {"sources": {"logged": 1, "annotated": 1}}, {"online": 64, "logged": 32, "annotated": 32}),
        (16, {"sources": {"logged": 2, "annotated": 1}}, {"online": 8, "logged": 5, "annotated": 3}),
        (16, {"sources": {"logged": 1, "annotated": 0}}, {"online": 8, "logged": 8}),
        (15, {"samples_per_prompt": 4}, {"online": 8, "logged": 7}),
        (7, {"samples_per_prompt": 2, "offline": 0.01}, {"online": 6, "logged": 1}),
        (12, {"samples_per_prompt": 4, "sources": {"replay": 2}}, {"online": 8, "replay": 4}),
        (
            24,
            {"samples_per_prompt": 4, "sources": {"logged": 1, "replay": 1}},
            {"online": 12, "replay": 8, "logged": 4},
        ),
    ],
)
def test_a_batch_is_divided_by_the_weights(batch, options, expected):
    assert settings(**options).shares(batch) == expected


def test_whatever_the_weights_the_counts_add_up_and_groups_are_whole():
    tried = 0
    for batch, group, offline, *weights in product(range(3, 33), (1, 2, 3, 4), (0.0, 0.1, 0.5, 0.9), *[(0, 1, 3)] * 3):
        sources = dict(zip(EVERY, weights, strict=True))
        if offline and not any(weights):
            continue
        made = settings(samples_per_prompt=group, offline=offline, sources=sources)
        try:
            shares = made.shares(batch)
        except InputError:
            continue
        tried += 1
        named = {name for name, weight in sources.items() if weight and offline}
        assert shares.keys() == {"online"} | named
        assert sum(shares.values()) == batch
        assert min(shares.values()) > 0
        assert shares["online"] % group == shares.get("replay", 0) % group == 0
        assert abs(shares["online"] - (1 - offline) * batch) <= group
    assert tried > 4000


@pytest.mark.parametrize(
    ("batch", "options", "told"),
    [
        (16, {"offline": 1.0}, "rollout.offline=1 leaves none of trainer.batch_size=16 trajectories to sample"),
        (
            3,
            {"samples_per_prompt": 4},
            r"leaves none of trainer.batch_size=3 trajectories to sample \(in groups of 4\)",
        ),
        (16, {"sources": {"logged": 100, "annotated": 1}}, "rollout.sources.annotated: less than one of"),
        (12, {"samples_per_prompt": 4, "sources": {"logged": 1, "replay": 2}}, "rollout.sources.logged: less than one"),
        (
            12,
            {"samples_per_prompt": 4, "sources": {"logged": 3, "replay": 1}},
            r"rollout.sources.replay: less than one of trainer.batch_size=12 trajectories \(in groups of 4\)",
        ),
        (
            7,
            {"samples_per_prompt": 2, "offline": 0},
            "trainer.batch_size=7 is not a multiple of rollout.samples_per_prompt=2",
        ),
        (
            9,
            {"samples_per_prompt": 2, "sources": {"replay": 1}},
            "trainer.batch_size=9 is not a multiple of rollout.samples_per_prompt=2",
        ),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(batch, options, told):
    with pytest.raises(InputError, match=told):
        settings(**options).shares(batch)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": [0.8, 0.1]}, r"rollout.temperature=\[0.8, 0.1\]: expected \[least, greatest\]"),
        ({"max_staleness": 8}, r"rollout.max_staleness=8: weights are up to 9 steps old before new ones come"),
        ({"sources": {}}, r"rollout.offline=0.5, but rollout.sources=\{\} names nothing to fill it with"),
        ({"sources": {"logged": 0}}, "names nothing to fill it with"),
        ({"sources": {"further": 1}}, "rollout.path is the file of rollout.sources.further: set both or none"),
        ({"path": "a.jsonl"}, "rollout.path is the file of rollout.sources.further: set both or none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        settings(**options)


def test_as_many_steps_of_staleness_as_the_interval_brings_are_accepted():
    assert settings(max_staleness=9).max_staleness == 9
    assert settings(max_staleness=0, model_update_interval=1).max_staleness == 0
