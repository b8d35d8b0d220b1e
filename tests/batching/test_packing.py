"""What lies where in a packed batch, seen from outside: tokens, positions, and who may attend to whom."""

import numpy as np
import pytest
import torch

from shiqrun.batching.packing import common_prefix, packed_layout, padded_layout
from shiqrun.batching.rows import Rows
from tests.support.helpers import trajectory

PROMPT, OTHER = [5, 6, 7, 8, 9], [5, 6]


def row(n, prompt, completion):
    ids = [*prompt, *completion]
    return trajectory(
        n,
        tokens=ids,
        action_index=list(range(len(prompt), len(ids))),
        rewards=[0.0] * len(completion),
        prompt_id=str(list(prompt)),
    )


def family():
    """Three completions of a prompt (two begin alike, one twice), and two trajectories of other prompts."""
    texts = [[11, 12, 13], [11, 12, 14, 15], [16], [11, 12, 13]]
    made = [row(n, PROMPT, text) for n, text in enumerate(texts)]
    return [*made[:2], row(4, OTHER, [21, 22, 23, 24, 25, 26, 27]), *made[2:], row(5, [9], [31, 32])]


def many(seed):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, 48, rng.integers(1, 40)) for _ in range(4)]
    return [row(n, prompts[rng.integers(4)], rng.integers(3, 6, rng.integers(1, 60))) for n in range(25)]


def seen(attention, tokens):
    """`[L, L]` bool, which packed token each one attends to; and that no call answers a token twice."""
    index = torch.arange(tokens)
    queries = index if attention.queries is None else attention.queries
    keys = index if attention.keys is None else attention.keys
    outputs = index if attention.outputs is None else attention.outputs
    rows, q, k = [], 0, 0
    for call in attention.calls:
        mask = call.mask
        if mask is None:
            assert call.queries == call.keys
            mask = torch.ones(call.queries, call.keys, dtype=torch.bool).tril().expand(call.branches, 1, -1, -1)
        assert mask.shape == (call.branches, 1, call.queries, call.keys)
        ours = keys[k : k + call.branches * call.keys].view(call.branches, call.keys)
        for branch in range(call.branches):
            for query in range(call.queries):
                rows.append(ours[branch][mask[branch, 0, query]])
        q, k = q + call.branches * call.queries, k + call.branches * call.keys
    assert q == len(queries)
    assert k == len(keys)
    assert torch.equal(queries[outputs], index)
    found = torch.zeros(tokens, tokens, dtype=torch.int64)
    for token in range(tokens):
        found[token] = torch.bincount(rows[outputs[token]], minlength=tokens)
    assert int(found.max()) == 1  # no key twice
    return found.bool()


@pytest.mark.parametrize("made", [family(), many(0), many(1), many(2)[:1]])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_token_sees_its_trajectory_up_to_itself_and_nothing_else(made, device):
    layout = packed_layout(made, max(len(t.action_index) for t in made), device=device)
    ids, positions = layout.input_ids[0], layout.positions[0]
    table = seen(layout.attention, len(ids))
    ends = layout.taken.split([len(t.action_index) for t in made])
    for t, taken in zip(made, ends, strict=True):
        context = table[taken[-1]].nonzero().squeeze(-1)
        context = context[positions[context].argsort()]
        assert ids[context].tolist() == t.input_ids.tolist()  # the last action sees all of its trajectory, alone
        assert positions[context].tolist() == list(range(len(t.input_ids)))
        for n, token in enumerate(context):
            assert sorted(table[token].nonzero().squeeze(-1).tolist()) == sorted(context[: n + 1].tolist())


def test_a_shared_beginning_lies_there_once():
    made = family()
    layout = packed_layout(made, 7)
    own = [3, 2, 9, 1, 0, 3]  # behind the longest common beginning with the first of their prompt
    assert layout.input_ids.numel() == len(PROMPT) + sum(own)
    assert layout.attention_mask is None
    assert layout.attention.longest == 9
    assert [int(x) for x in layout.state[:3]] == [*(int(x) for x in layout.state[3:5]), int(layout.taken[1])]


def test_actions_are_found_where_the_padded_batch_has_them():
    made = Rows(many(3), pad=0)
    batch = made.collate(range(9))
    made = made.with_layout(packed=True)
    layout = made.collate(range(9)).layout
    read = padded_layout(batch.input_ids, batch.attention_mask, batch.action_index, batch.action_mask)
    assert torch.equal(layout.slot, read.slot)
    for name in ("state", "taken"):
        ours, theirs = (x.input_ids.flatten()[getattr(x, name)] for x in (layout, read))
        assert torch.equal(ours, theirs)
    assert torch.equal(batch.action_mask.flatten().nonzero().squeeze(-1), read.slot)


def test_lengths_of_common_beginnings():
    assert [
        common_prefix(np.array(a), np.array(b)) for a, b in (([1, 2], [1, 2, 3]), ([1], [2]), ([4, 4], [4, 4]))
    ] == [
        2,
        0,
        2,
    ]


# ------------------------------------------------------------------ micro-batches of packed rows
@pytest.mark.parametrize("tokens", [1, 60, 300, 10**6])
def test_packed_micro_batches_keep_the_token_budget(tokens):
    made = Rows(many(4), pad=0, packed=True)
    cut = made.micro_batches(made.units, tokens)
    assert sorted(i for batch in cut for i in batch) == list(range(25))
    for batch in cut:
        read = made.collate(batch).layout.input_ids.numel()
        assert read <= made.tokens_read(batch)
        assert read <= tokens or len(batch) == 1


def test_rows_of_a_prompt_meet_in_a_micro_batch():
    made = Rows(many(5), pad=0, packed=True)
    cut = made.micro_batches(made.units, 250)
    batches = {f: {n for n, batch in enumerate(cut) if f in made.prompt_number[batch]} for f in set(made.prompt_number)}
    assert len(cut) > 2
    assert all(max(held) - min(held) + 1 == len(held) for held in batches.values())  # in neighbouring ones
    read = sum(made.collate(batch).layout.input_ids.numel() for batch in cut)
    alone = int(made.lengths.sum())
    assert read < 0.9 * alone


def test_units_larger_than_the_budget_stand_alone_and_uncut():
    made = Rows(family(), pad=0, together=True, packed=True)
    assert all(len(made.units[0]) >= 1 for _ in made.units)
    cut = made.micro_batches([[0, 1, 3], [2], [5]], 12)
    assert [0, 1, 3] in cut


def test_together_but_not_compared_a_prompt_may_be_cut_by_a_micro_batch():
    """Else one prompt with many completions would be read at once, whatever memory there is."""
    whole, cut = (Rows(many(7), pad=0, together=True, compared=flag, packed=True) for flag in (True, False))
    assert max(map(len, whole.units)) == max(map(len, cut.units)) > 3
    read = [max(made.tokens_read(b) for b in made.micro_batches(made.units, 100)) for made in (whole, cut)]
    assert read[0] > 200 > 100 >= read[1]


def test_together_a_prompt_is_read_once_a_step():
    apart, together = (Rows(many(6), pad=0, together=flag, packed=True) for flag in (False, True))
    read = [sum(made.tokens_read(unit) for unit in made.units) for made in (apart, together)]
    assert read[0] == int(apart.lengths.sum())
    prompts = {tuple(t.input_ids[: t.action_index[0]]) for t in together.trajectories}
    actions = sum(len(t.action_index) for t in together.trajectories)
    assert read[1] == sum(map(len, prompts)) + actions
