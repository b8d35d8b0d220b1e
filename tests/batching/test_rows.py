from dataclasses import FrozenInstanceError, fields, replace
from itertools import islice

import numpy as np
import pytest
import torch

from shiqrun.batching.columns import COLUMNS, AnchorTokens
from shiqrun.batching.micro_batches import padded_micro_batches
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import Batches, Steps, step_units
from shiqrun.types import Trajectories
from tests.support.helpers import rows, trajectory


def two_rows():
    made = [
        trajectory(0, tokens=[5, 6, 7, 8, 9], action_index=[2, 3], rewards=[0.5, 1.0], prompt_id="a"),
        trajectory(1, tokens=[5, 0, 7], action_index=[1], rewards=[2.0], prompt_id="b"),
        trajectory(2, tokens=[5, 6], action_index=[1], prompt_id="a"),
    ]
    return Rows(made, pad=0)


def steps(made, *, batch_size=5, tokens=30, seed=0, start=0, **ranks):
    return Steps(
        made,
        batch_size=batch_size,
        micro_batch_tokens=tokens,
        seed=seed,
        start=start,
        **({"rank": 0, "world": 1} | ranks),
    )


@pytest.mark.parametrize(("count", "size"), [(12, 4), (13, 4), (3, 8), (1, 1)])
def test_every_row_is_visited_once_an_epoch(count, size):
    per_epoch = -(-count // size)
    for epoch in range(3):
        seen = np.concatenate([step_units(count, size, 7, epoch * per_epoch + k) for k in range(per_epoch)])
        assert sorted(seen) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(np.concatenate([step_units(40, 10, seed, 4 * e + k) for k in range(4)])) for seed, e in np.ndindex(2, 2)
    ]
    assert len(set(orders)) == 4


def test_rows_of_a_step_depend_on_seed_and_step_alone():
    first = [step_units(13, 4, 3, step).tolist() for step in range(9)]
    np.random.default_rng(0).random(5)
    np.random.seed(1)
    assert [step_units(13, 4, 3, step).tolist() for step in reversed(range(9))] == first[::-1]


def test_a_loader_that_starts_later_hands_out_the_same_steps():
    made = rows(13)
    whole = list(islice(steps(made), 9))
    resumed = list(islice(steps(made, start=5), 4))
    for a, b in zip(whole[5:], resumed, strict=True):
        assert [x.input_ids.tolist() for x in a] == [x.input_ids.tolist() for x in b]


@pytest.mark.parametrize("tokens", [1, 12, 25, 10**6])
def test_micro_batches_keep_the_token_budget_and_lose_no_row(tokens):
    made = rows(40)
    picked = list(range(3, 37))
    cut = padded_micro_batches(made.lengths, [[i] for i in picked], tokens)
    assert sorted(i for batch in cut for i in batch) == picked
    for batch in cut:
        padded = made.collate(batch).input_ids.numel()
        assert padded <= tokens or len(batch) == 1


def test_a_large_budget_makes_one_micro_batch():
    assert len(padded_micro_batches(rows(40).lengths, [[i] for i in range(40)], 10**6)) == 1


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_partition_the_rows_of_every_step(world):
    made = rows(13)
    for step in range(6):
        ranks = [steps(made, rank=r, world=world).rows_of(step) for r in range(world)]
        together = [i for cut in ranks for batch in cut for i in batch]
        assert sorted(together) == sorted(step_units(13, 5, 0, step).tolist())


@pytest.mark.parametrize(("together", "packed"), [(False, True), (False, False), (True, True)])
def test_the_slowest_of_eight_ranks_reads_at_most_a_twentieth_more_than_the_mean(together, packed):
    rng = np.random.default_rng(0)  # lengths as those of dialogues: a few are ten times as long as most
    lengths = np.exp(rng.normal(5.0, 0.7, 1200)).astype(int).clip(8, 2000) // 4 + 4
    made = [
        trajectory(k, tokens=[k // 2 + 1, *[1] * n], action_index=[n // 2 + 1], prompt_id=f"p{k // 2}")
        for k, n in enumerate(lengths)
    ]
    table = Rows(made, pad=0, together=together, packed=packed)
    for step in range(6):
        units = [table.units[i] for i in step_units(len(table.units), table.units_per_step(256), 0, step)]
        shares = [table.share(units, rank, 8) for rank in range(8)]
        work = [sum(table.tokens_read(unit) for unit in share) for share in shares]
        assert max(work) <= 1.05 * sum(work) / 8
        assert sorted(tuple(u) for share in shares for u in share) == sorted(map(tuple, units))


def test_a_rank_without_rows_gets_one_batch_without_actions():
    made = rows(13)
    made = made.with_column("reference", [(np.ones(n, np.float32), np.ones(n, np.float32)) for n in made.actions])
    idle = steps(made, batch_size=2, rank=3, world=4)
    assert idle.rows_of(0) == []
    (batch,) = next(iter(idle))
    assert not batch.action_mask.any()
    assert batch.rewards.sum() == 0
    assert batch.attention_mask.any()


def test_even_ranks_read_equally_many_micro_batches_and_the_same_rows():
    made = rows(60)
    counts = []
    for step in range(8):
        plain = [next(iter(steps(made, batch_size=7, start=step, rank=r, world=3))) for r in range(3)]
        even = [next(iter(steps(made, batch_size=7, start=step, rank=r, world=3, even=True))) for r in range(3)]
        counts.append(len({len(batches) for batches in plain}))
        assert {len(batches) for batches in even} == {max(map(len, plain))}
        for some, padded in zip(plain, even, strict=True):
            assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(some, padded, strict=False))
            assert not any(bool(idle.action_mask.any()) for idle in padded[len(some) :])
    assert max(counts) > 1  # else nothing is shown


def test_a_split_is_read_once_by_all_ranks_together():
    made = rows(13)
    for world in (1, 2, 5):
        seen = [row for r in range(world) for cut, _ in Batches(made, tokens=20, rank=r, world=world) for row in cut]
        assert sorted(seen) == list(range(13))


def test_a_rank_without_rows_of_a_split_gets_one_batch_without_actions():
    ((cut, batch),) = Batches(rows(2), tokens=20, rank=2, world=3)
    assert cut == []
    assert not batch.action_mask.any()


def test_an_empty_split_has_no_batch():
    empty = Rows([], pad=0)
    assert list(Batches(empty, tokens=20)) == []
    assert len(empty) == len(empty.returns) == 0


def test_collated_rows_are_padded_on_the_right_with_masks_that_say_where():
    batch = two_rows().collate([0, 1])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 0, 7, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]  # a 0 in the text is a token
    assert batch.action_index[0].tolist() == [2, 3]
    assert batch.action_index[1, 0] == 1
    assert batch.action_index.min() >= 1
    assert batch.action_mask.tolist() == [[True, True], [True, False]]
    assert batch.rewards.tolist() == [[0.5, 1], [2, 0]]
    assert batch.input_ids.dtype == batch.action_index.dtype == batch.group.dtype == torch.int64


def test_rows_of_one_prompt_share_a_group():
    made = two_rows()
    group = made.collate([0, 1, 2]).group
    assert group[0] == group[2] != group[1]
    assert made.prompts == 2


def test_the_offset_is_taken_from_the_last_actions_reward():
    made = two_rows()
    made = made.with_column("offset", np.array([0.25, 4, 1], np.float32))
    assert made.collate([0, 1]).rewards.tolist() == [[0.5, 0.75], [-2, 0]]
    assert made.returns.tolist()[:2] == [1.5, 2]


def test_rows_without_rewards_have_nan_on_their_actions_only():
    batch = two_rows().collate([0, 2])
    assert batch.rewards[1].isnan().tolist() == [True, False]
    assert batch.rewards[0].tolist() == [0.5, 1]


def test_cached_reference_scores_follow_their_rows():
    made = rows(13)
    scores = [(np.full(n, i, np.float32), np.full(n, -i, np.float32)) for i, n in enumerate(made.actions)]
    made = made.with_column("reference", scores)
    batch = made.collate([4, 9, 2])
    for line, row in enumerate([4, 9, 2]):
        assert (batch.reference.logit[line][batch.action_mask[line]] == row).all()
        assert (batch.reference.log_partition[line][batch.action_mask[line]] == -row).all()
    assert batch.reference.logit.shape == batch.action_index.shape


# ------------------------------------------------------------------ completions that are compared stay together
def grouped(count=24, sizes=(2, 3, 4), seed=0):
    """Rows of prompts with two to four completions, in shuffled order."""
    made, rng = rows(count, seed=seed).trajectories, np.random.default_rng(seed)
    names = [f"p{g}" for g in range(count) for _ in range(sizes[g % len(sizes)])][:count]
    shuffled = [
        replace(t, prompt_id=names[k], group=names[k]) for t, k in zip(made, rng.permutation(count), strict=True)
    ]
    return Rows(shuffled, pad=0, together=True)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_no_step_rank_or_micro_batch_cuts_a_group(world, tokens):
    made = grouped()
    whole = {g: set(np.flatnonzero(made.group == g)) for g in set(made.group)}
    for step in range(7):
        for rank in range(world):
            for batch in steps(made, batch_size=6, tokens=tokens, rank=rank, world=world).rows_of(step):
                for g in set(made.group[batch]):
                    assert whole[g] <= set(batch)
    for batch, _ in Batches(made, tokens=tokens):
        assert all(whole[g] <= set(batch) for g in set(made.group[batch]))


def test_groups_too_are_visited_once_an_epoch():
    made = grouped()
    per_epoch = made.steps_per_epoch(6)
    for epoch in range(2):
        seen = [
            i for k in range(per_epoch) for b in steps(made, batch_size=6).rows_of(epoch * per_epoch + k) for i in b
        ]
        assert sorted(seen) == list(range(len(made)))


def test_a_step_of_equal_groups_has_exactly_batch_size_rows():
    made = grouped(sizes=(4,))
    assert [sum(map(len, steps(made, batch_size=8).rows_of(k))) for k in range(3)] == [8, 8, 8]


# ------------------------------------------------------------------ the anchor's tokens
def test_anchor_tokens_are_a_function_of_seed_and_row():
    made = rows(9)
    made = made.with_anchor(AnchorTokens(3, 48, 5))
    a, b = made.collate([4, 1]), made.collate([1])
    n = int(made.actions[1])
    assert a.anchor_tokens.shape == (2, a.action_index.shape[1], 3)
    assert torch.equal(a.anchor_tokens[1, :n], b.anchor_tokens[0, :n])
    assert int(a.anchor_tokens.max()) < 48
    made = made.with_anchor(AnchorTokens(3, 48, 6))
    assert not torch.equal(made.collate([1]).anchor_tokens, b.anchor_tokens)


# ------------------------------------------------------------------ tables made of other tables
def known():
    """Nine rows with a column of each kind."""
    made = rows(9)
    return made.with_columns(
        prompt_value=np.arange(9, dtype=np.float32),
        value_target=[np.full(n, i, np.float32) for i, n in enumerate(made.actions)],
        reference=[(np.full(n, i, np.float32), np.full(n, -i, np.float32)) for i, n in enumerate(made.actions)],
    ).with_source("annotated")


def test_nothing_assigns_to_rows():
    made = known()
    for name in ("trajectories", "packed", "source", "anchor", "columns", "offset"):
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, None)


def test_a_new_column_leaves_the_rows_it_was_given_to_alone():
    before = rows(9)
    units = before.units
    after = before.with_column("prompt_value", np.ones(9, np.float32))
    assert before.collate([0]).prompt_value is None
    assert after.collate([0]).prompt_value.tolist() == [1]
    assert after.units is units  # computed once
    assert before.with_layout(packed=True).packed
    assert not before.packed


def test_a_column_of_an_unknown_name_or_of_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"column 'prompt_valeu': expected one of .*prompt_value"):
        rows(9).with_column("prompt_valeu", np.zeros(9, np.float32))
    with pytest.raises(ValueError, match="column 'prompt_value' has 8 rows, expected 9"):
        rows(9).with_column("prompt_value", np.zeros(8, np.float32))


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_fills_the_field_of_a_batch_that_has_its_name(name):
    assert name in {field.name for field in fields(Trajectories)}


def same(a, b):
    """Whether two batches have equal numbers, NaN included."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name not in ("layout", "group")]
    pairs += [(a.reference.logit, b.reference.logit), (a.reference.log_partition, b.reference.log_partition)]
    return all(torch.equal(x.nan_to_num(77), y.nan_to_num(77)) for x, y in pairs if isinstance(x, torch.Tensor))


def test_selected_rows_keep_all_that_is_theirs():
    made = known()
    part = made.select([7, 2, 5])
    assert part.source == "annotated"
    assert same(part.collate([0, 1, 2]), made.collate([7, 2, 5]))


def test_concatenated_rows_keep_all_that_is_theirs():
    made = known()
    whole = made.select([0, 1, 2, 3]).concat(made.select([4]), made.select([5, 6, 7, 8]))
    assert same(whole.collate(range(9)), made.collate(range(9)))


def test_rows_of_another_kind_are_not_concatenated():
    made = known()
    for other in (rows(3).with_source("annotated"), made.with_source("replay"), made.with_layout(packed=True)):
        with pytest.raises(ValueError, match="cannot be concatenated"):
            made.concat(other)
