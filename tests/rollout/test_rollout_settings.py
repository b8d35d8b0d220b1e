"""How a batch is divided among its sources, and settings that cannot be."""

from itertools import product

import pytest

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
        shares = settings(samples_per_prompt=group, offline=offline, sources=sources).shares(batch)
        named = {name for name, weight in sources.items() if weight and offline}
        assert shares.keys() == {"online"} | named
        assert min(shares.values()) >= 0
        assert shares["online"] % group == shares.get("replay", 0) % group == 0
        if batch >= group:
            assert abs(shares["online"] - (1 - offline) * batch) <= group
        if named - {"replay"}:
            assert sum(shares.values()) == batch
        else:
            assert batch - 2 * group < sum(shares.values()) <= batch
        tried += 1
    assert tried > 8000


def test_as_many_steps_of_staleness_as_the_interval_brings_are_accepted():
    assert settings(max_staleness=9).max_staleness == 9
    assert settings(max_staleness=0, model_update_interval=1).max_staleness == 0
