"""A packed batch has no padding, and trajectories with the same prompt share its tokens.

A *branch* is the tokens that a trajectory adds to the first trajectory of its prompt in the batch: all tokens of that
first one, and for the others the tokens after their longest common prefix. Tokens of a branch attend to that prefix
and to themselves, never to another branch, and keep the positions that they have in their trajectory. So every hidden
state is that of the trajectory alone, and a token that several trajectories share is computed once. (An exception are
models that scale positions by the longest trajectory of the batch, as dynamic NTK does; padded batches differ there
too.)
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.layout import Attention, Call, Layout

CALL_AREA = {"cpu": 4096, "cuda": 1 << 18}
"""Queries times keys that cost about as much as one more call of the attention kernel, by type of device. Branches are
padded to each other's length where that wastes less."""


class Branch(NamedTuple):
    """A `Branch` is the end of a trajectory, after a prefix that another trajectory of the batch holds.

    Attributes:
        row: number of the trajectory in the batch.
        base: number of the trajectory that holds the prefix.
        shared: tokens of the prefix.
        length: tokens after the prefix.
    """

    row: int
    base: int
    shared: int
    length: int


def packed_layout(trajectories: Sequence[EncodedTrajectory], actions: int, *, device: str = "cpu") -> Layout:
    """Return the layout of a packed batch.

    Args:
        trajectories: B of them, in the order of the batch.
        actions: A, the most actions of a trajectory.
        device: type of the device; its cost of an attention call decides which branches are padded together.
    """
    ids, branches = [t.input_ids for t in trajectories], _branches(trajectories)
    buckets = list(_buckets(branches, CALL_AREA.get(device, CALL_AREA["cuda"])))
    places: list[np.ndarray] = [np.zeros(0, np.int64)] * len(ids)
    every = np.arange(sum(b.length for b in branches))
    flat, positions = np.empty_like(every), np.empty_like(every)
    start = 0
    for row, base, shared, length in (b for bucket in buckets for b in bucket):  # beginnings before those who use them
        end = start + length
        own, flat[start:end] = every[start:end], ids[row][shared:]
        positions[start:end] = np.arange(shared, shared + length)
        places[row] = np.concatenate([places[base][:shared], own]) if shared else own
        start = end
    for row, branch in enumerate(branches):
        if not branch.length:  # the same tokens as the first trajectory's beginning
            places[row] = places[branch.base][: branch.shared]
    index = [t.action_index for t in trajectories]
    return Layout(
        input_ids=torch.from_numpy(flat)[None],
        attention_mask=None,
        positions=torch.from_numpy(positions)[None],
        state=_joined(place[at - 1] for place, at in zip(places, index, strict=True)),
        taken=_joined(place[at] for place, at in zip(places, index, strict=True)),
        slot=_slots(index, actions),
        attention=_attention(buckets, places, torch.from_numpy(positions), max(map(len, ids))),
    )


def padded_layout(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, action_index: torch.Tensor, action_mask: torch.Tensor
) -> Layout:
    """Return the layout of a padded batch, `[B, T]`."""
    row, column = action_mask.nonzero(as_tuple=True)
    taken = row * input_ids.shape[1] + action_index[row, column]
    slot = row * action_index.shape[1] + column
    return Layout(input_ids, attention_mask, None, taken - 1, taken, slot)


def _joined(parts: Iterable[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64, copy=False))


def _slots(index: Sequence[np.ndarray], actions: int) -> torch.Tensor:
    return _joined(row * actions + np.arange(len(at)) for row, at in enumerate(index))


def _branches(trajectories: Sequence[EncodedTrajectory]) -> list[Branch]:
    """Return one branch per trajectory; those with the same prompt branch off from the first of them."""
    first: dict[bytes, int] = {}
    made = []
    for row, t in enumerate(trajectories):
        base = first.setdefault(t.input_ids[: t.action_index[0]].tobytes(), row)
        shared = 0 if base == row else common_prefix(trajectories[base].input_ids, t.input_ids)
        made.append(Branch(row, base, shared, len(t.input_ids) - shared))
    return made


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the longest common prefix."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def _buckets(branches: Iterable[Branch], area: int) -> Iterable[list[Branch]]:
    """Yield the branches of each call of the attention kernel, those without a prefix first, the longest first.

    A branch joins the previous bucket where its padding wastes less than a call of its own would cost.
    """
    bucket: list[Branch] = []
    before = 0  # longest beginning in the bucket
    for b in sorted((b for b in branches if b.length), key=lambda b: (b.shared > 0, -b.length, -b.shared)):
        if bucket and (b.shared > 0) == (bucket[0].shared > 0):
            queries, reach = bucket[0].length, max(before, b.shared)
            whole = (len(bucket) + 1) * queries * (reach + queries)
            alone = len(bucket) * queries * (before + queries) + b.length * (b.shared + b.length)
            if whole - alone <= area:
                bucket.append(b)
                before = reach
                continue
        if bucket:
            yield bucket
        bucket, before = [b], b.shared
    if bucket:
        yield bucket


def _attention(
    buckets: Sequence[Sequence[Branch]], places: Sequence[np.ndarray], positions: torch.Tensor, longest: int
) -> Attention:
    calls, queries, keys, outputs = [], [], [], np.empty(len(positions), np.int64)
    done = 0
    for bucket in buckets:
        width, reach = bucket[0].length, max(b.shared for b in bucket)
        own = np.zeros((len(bucket), width), np.int64)
        before = np.zeros((len(bucket), reach), np.int64)
        at = np.arange(done, done + own.size).reshape(own.shape)
        for k, (row, _, shared, length) in enumerate(bucket):
            place = places[row]
            own[k, :length] = place[shared:]
            before[k, :shared] = place[:shared]
            outputs[place[shared:]] = at[k, :length]
        done += own.size
        calls.append(Call(len(bucket), width, reach + width, _mask(bucket, width, reach) if reach else None))
        queries.append(own.ravel())
        keys.append(np.concatenate([before, own], 1).ravel() if reach else queries[-1])
    asked, seen = _joined(queries), _joined(keys)
    return Attention(
        tuple(calls),
        queries=_unless_all(asked, len(outputs)),
        keys=_unless_all(seen, len(outputs)),
        outputs=_unless_all(torch.from_numpy(outputs), len(asked)),
        query_positions=positions[asked],
        key_positions=positions[seen],
        longest=longest,
    )


def _unless_all(index: torch.Tensor, size: int) -> torch.Tensor | None:
    """Return the index, or None if it takes all of `size` in order."""
    return None if len(index) == size and torch.equal(index, torch.arange(size)) else index


def _mask(bucket: Sequence[Branch], width: int, reach: int) -> torch.Tensor:
    """Return the attention mask `[R, 1, Q, K]`: all of a branch's prefix, and its own tokens up to the query."""
    shared = torch.tensor([b.shared for b in bucket])
    beginning = (torch.arange(reach) < shared[:, None])[:, None, None].expand(-1, -1, width, -1)
    own = torch.ones(width, width, dtype=torch.bool).tril().expand(len(bucket), 1, -1, -1)
    return torch.cat([beginning, own], -1)
