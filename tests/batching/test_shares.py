"""The shares of a mixture: whole passes, a part of one, and an order that is a pure function of seed and epoch."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from shiqrun.batching.shares import Parts, Shares
from shiqrun.batching.steps import step_units
from shiqrun.errors import InputError
from tests.support import helpers


@pytest.mark.parametrize(
    ("weight", "units", "epochs", "times"),
    [(2, 7, 1, {2: 7}), (0.5, 8, 2, {1: 8}), (1.5, 4, 2, {3: 4}), (0.25, 8, 4, {1: 8}), (0.4, 5, 5, {2: 5})],
)
def test_every_unit_is_visited_as_often_as_the_weight_says(weight, units, epochs, times):
    number = np.repeat([0, 1], [units, 3])
    shares = Parts(("a", "b"), (weight, 1.0), number).shares(np.arange(len(number)))
    seen = Counter(np.concatenate([shares.epoch_units(3, epoch) for epoch in range(epochs)]).tolist())
    assert Counter(seen[unit] for unit in range(units)) == times
    assert [seen[units + unit] for unit in range(3)] == [epochs] * 3


def test_steps_cut_the_visits_of_an_epoch_and_need_nothing_of_earlier_steps():
    shares = Shares(("a", "b"), (5, 8), (10, 4))
    steps = [step_units(shares, 4, 7, step).tolist() for step in range(8)]  # 14 visits are 4 steps
    assert [len(step) for step in steps] == [4, 4, 4, 2] * 2
    assert sorted(chain(*steps[:4])) == shares.epoch_units(7, 0).tolist()
    assert sorted(chain(*steps[4:])) == shares.epoch_units(7, 1).tolist()
    halves = [set(shares.epoch_units(7, epoch)[10:]) for epoch in range(2)]
    assert (halves[0] | halves[1], halves[0] & halves[1]) == (set(range(5, 13)), set())
    assert [step_units(shares, 4, 7, step).tolist() for step in reversed(range(8))] == steps[::-1]
    assert steps[:4] != steps[4:] != [step_units(shares, 4, 8, step).tolist() for step in range(4)]


def test_one_part_of_weight_one_has_the_order_of_a_data_set_alone():
    for step in range(9):
        assert step_units(Shares(("a",), (13,), (13,)), 4, 3, step).tolist() == step_units(13, 4, 3, step).tolist()


def test_a_part_keeps_its_order_beside_other_parts():
    alone, beside = Shares(("b",), (9,), (4,)), Shares(("a", "b"), (6, 9), (6, 4))
    assert [alone.epoch_units(1, e).tolist() for e in range(5)] == [
        (beside.epoch_units(1, e)[6:] - 6).tolist() for e in range(5)
    ]


def test_a_step_has_as_many_rows_as_asked_whatever_the_size_of_the_parts_groups():
    rows = helpers.rows(12)
    parts = Parts(("a", "b"), (3.0, 1.0), np.repeat([0, 1], [4, 8]))
    made = type(rows)(rows.trajectories, rows.pad, parts=parts)
    assert (made.units_per_step(6), made.epoch_units, made.steps_per_epoch(6)) == (6, 20, 4)


def test_a_weight_that_leaves_nothing_of_a_part_is_an_error():
    with pytest.raises(InputError, match=r"data\.parts\.b\.weight=0\.1: an epoch would visit none of its 3 units"):
        Parts(("a", "b"), (1.0, 0.1), np.array([0, 0, 1, 1, 1])).shares(np.arange(5))


def test_micro_batches_have_rows_of_one_part_and_a_row_twice_is_two_groups():
    rows = helpers.rows(9)
    made = type(rows)(rows.trajectories, rows.pad, parts=Parts(("a", "b"), (1.0, 1.0), np.repeat([0, 1], [4, 5])))
    cut = made.micro_batches([[i] for i in (8, 0, 3, 5, 0)], 10**6)
    assert sorted(map(sorted, cut)) == [[0, 0, 3], [5, 8]]
    batches = {made.collate(batch).part: made.collate(batch) for batch in cut}
    assert len(set(batches["a"].group.tolist())) == len({made.group[0], made.group[3]}) + 1
    assert sorted(batches) == ["a", "b"]
