"""Mismatched trajectories: every prompt with a completion of another one, the same for every run."""

import time

import numpy as np
import pytest
import torch

from shiqrun.batching.mismatched import partners, with_mismatched
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import Steps
from tests.support import helpers


def talks(prompts=(3, 5, 2), each=2):
    """Rows of prompts 1..., each with answers of their own token, some with a reply of the environment between."""
    made = []
    for n, length in enumerate(prompts):
        for k in range(each):
            said = [10 * (n + 1) + k] * (2 + n + k)
            ids = [n + 1] * length + said[:1] + [9] * k + said[1:]
            index = [length, *range(length + 1 + k, len(ids))]
            made.append(helpers.trajectory(len(made), tokens=ids, action_index=index, rewards=[1.0] * len(index)))
    return Rows(made, pad=0)


def test_a_mismatched_trajectory_is_the_rows_prompt_with_its_partners_completion():
    rows = talks()
    joined = with_mismatched(rows).mismatched
    partner = partners(rows.prompt_number)
    for i, (own, there) in enumerate(zip(rows.trajectories, joined.trajectories, strict=True)):
        other = rows.trajectories[int(partner[i])]
        start, begins = own.action_index[0], other.action_index[0]
        assert other.input_ids[0] != own.input_ids[0], "another prompt"
        expected = [*own.input_ids[:start], *other.input_ids[begins:]][: rows.lengths.max()]
        assert there.input_ids.tolist() == expected
        assert (
            there.input_ids[there.action_index].tolist()
            == other.input_ids[other.action_index][: len(there.action_index)].tolist()
        )
        assert there.rewards is None


def test_it_is_cut_at_the_longest_rows_length_and_keeps_an_action():
    rows = talks(prompts=(30, 2))
    joined = with_mismatched(rows).mismatched
    assert int(joined.lengths.max()) == int(rows.lengths.max()) == 34
    assert int(joined.actions.min()) >= 1
    assert any(
        n < len(rows.trajectories[int(p)].action_index)
        for n, p in zip(joined.actions, partners(rows.prompt_number), strict=True)
    )


@pytest.mark.parametrize("numbers", [[0, 1], [0, 0, 0, 1], [0] * 50 + [1] * 3 + [2], list(range(40))])
def test_every_row_has_a_partner_of_another_prompt(numbers):
    numbers = np.array(numbers)
    found = partners(numbers)
    assert (numbers[found] != numbers).all()
    assert (partners(numbers) == found).all()


def test_where_prompts_are_many_every_completion_is_used_once():
    assert sorted(partners(np.arange(500))) == list(range(500))


def test_one_other_prompt_among_very_many_rows_is_found_at_once():
    numbers, began = np.zeros(50_000, np.int64), time.process_time()
    numbers[17] = 1
    found = partners(numbers)
    assert time.process_time() - began < 2  # looking further row by row takes twenty seconds
    assert (np.delete(found, 17) == 17).all()


def test_one_prompt_has_no_partners():
    assert partners(np.zeros(4, np.int64)) is None
    assert with_mismatched(talks(prompts=(3,))).mismatched is None


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_carries_them_in_its_own_layout_and_an_idle_one_without_actions(packed):
    rows = with_mismatched(talks()).with_layout(packed=packed)
    batch = rows.collate([4, 1])
    assert batch.mismatched.group.tolist() != []
    assert (batch.mismatched.layout.attention is not None) == packed
    ids = [rows.mismatched.trajectories[i].input_ids.tolist() for i in (4, 1)]
    for row, expected in zip(batch.mismatched.input_ids.tolist(), ids, strict=True):
        assert row[: len(expected)] == expected
    moved = batch.to("cpu")
    assert torch.equal(moved.mismatched.layout.taken, batch.mismatched.layout.taken)
    steps = Steps(rows, batch_size=1, micro_batch_tokens=64, seed=0, start=0, rank=1, world=2)
    (idle,) = next(iter(steps))
    assert not idle.action_mask.any()
    assert not idle.mismatched.action_mask.any()
