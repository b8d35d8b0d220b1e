"""Trajectories are stored as flat arrays, and read from them one at a time: no object is kept for any of them.

Arrays with a varying number of entries a trajectory are *ragged*: all entries, and where each trajectory's end. Actions
are kept as runs of positions, rewards as those that are not zero. Names are numbered once all rows are known.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, overload

import numpy as np

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.row_file import RowFile

INT32, INT64, BYTE = np.dtype("<i4"), np.dtype("<i8"), np.dtype("u1")
Types = dict[str, np.dtype[Any]]
RAGGED: Types = {"tokens": INT32, "runs": INT32, "paid": INT32, "prompt_id": BYTE, "source": BYTE}
"""Runs are pairs (first position, position behind the last); paid are pairs (number of the action, bits of float32)."""
PLAIN: Types = {
    "lengths": INT64,
    "actions": INT64,
    "prompt_lengths": INT64,
    "returns": np.dtype("<f4"),
}
PLAIN |= {"rewarded": np.dtype("?"), "alone": np.dtype("?"), "example": INT64, "completion": INT32}
NAMED = ("prompt", "group", "family")
"""What is numbered: equal numbers for equal names, in the order of their first occurrence."""
KEY = np.dtype("<u8")
"""Of a name that is not yet numbered, a hash of 128 bits is kept as two such numbers."""


COUNTS: dict[str, Callable[[EncodedTrajectory], Any]] = {
    "lengths": lambda t: len(t.input_ids),
    "actions": lambda t: len(t.action_index),
    "prompt_lengths": lambda t: t.action_index[0],
    "returns": lambda t: np.nan if t.rewards is None else t.rewards.sum(),
    "rewarded": lambda t: t.rewards is not None,
    "alone": lambda t: t.group != t.prompt_id,
    "example": lambda t: t.example,
    "completion": lambda t: t.completion,
}
"""How each array of `PLAIN` is counted."""


def _hash(name: Any) -> bytes:
    return blake2b(name, digest_size=16).digest()


NAMES: dict[str, Callable[[EncodedTrajectory], bytes]] = {
    "prompt": lambda t: _hash(t.prompt_id.encode()),
    "group": lambda t: _hash(t.group.encode()),
    "family": lambda t: _hash(np.ascontiguousarray(t.input_ids[: t.action_index[0]]).data),
}
"""The hash by which each kind of name is told apart; a family has the same tokens before the first action."""


def flat_arrays(rows: Sequence[EncodedTrajectory]) -> dict[str, np.ndarray]:
    """Return the flat arrays of some trajectories: ragged ones with their counts, plain ones, and keys of names."""
    counted = {name: CountedTrajectories(rows).plain(name) for name in PLAIN}
    actions = counted["actions"]
    owner = np.repeat(np.arange(len(rows)), actions)
    index = _joined([t.action_index for t in rows], INT32)
    begins = np.flatnonzero((np.diff(index, prepend=-1) != 1) | (np.diff(owner, prepend=-1) != 0))
    ends = np.append(begins[1:], len(index))
    placed = _joined(
        [np.zeros(n, "<f4") if t.rewards is None else t.rewards for t, n in zip(rows, actions, strict=True)], "<f4"
    )
    bits = placed.view(INT32)
    at = np.flatnonzero(bits)
    number = at - (np.cumsum(actions) - actions)[owner[at]]
    texts = {name: [getattr(t, name).encode() for t in rows] for name in ("prompt_id", "source")}
    made = {
        "tokens": _joined([t.input_ids for t in rows], INT32),
        "runs": np.stack([index[begins], index[ends - 1] + 1], 1).reshape(-1) if len(index) else index,
        "paid": np.stack([number.astype(INT32), bits[at]], 1).reshape(-1),
        **{name: np.frombuffer(b"".join(given), BYTE) for name, given in texts.items()},
        **counted,
        **{f"{name}_key": np.frombuffer(b"".join(map(of, rows)), KEY) for name, of in NAMES.items()},
    }
    counts = {name: np.array([len(text) for text in given], np.int64) for name, given in texts.items()}
    counts |= {"tokens": made["lengths"], "runs": 2 * np.bincount(owner[begins], minlength=len(rows))}
    counts |= {"paid": 2 * np.bincount(owner[at], minlength=len(rows))}
    return made | {f"{name}_count": count for name, count in counts.items()}


def _joined(parts: Sequence[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *parts]).astype(kind, copy=False)


def numbered(keys: np.ndarray) -> np.ndarray:
    """Return a number for each key, `[rows]` int64, equal for equal keys, in the order of their first occurrence."""
    low, high = keys[::2], keys[1::2]
    order = np.lexsort((low, high))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(low[order]) != 0) | (np.diff(high[order]) != 0)
    label = np.empty(len(order), np.int64)
    label[order] = np.cumsum(new) - 1
    rank = np.empty(int(new.sum()), np.int64)
    rank[np.argsort(order[new])] = np.arange(len(rank))  # the sort is stable: a label's first is its first occurrence
    return rank[label]


class CountedTrajectories:
    """`CountedTrajectories` counts trajectories in memory by the names that `StoredTrajectories` has counts for."""

    def __init__(self, rows: Sequence[EncodedTrajectory]) -> None:
        self.rows = rows

    def plain(self, name: str) -> np.ndarray:
        """Return one number of each trajectory, `[rows]`: a name of `PLAIN`."""
        of = COUNTS[name]
        return np.array([of(t) for t in self.rows], PLAIN[name])

    def numbers(self, name: str) -> np.ndarray:
        """Return the number of each trajectory's prompt, group or family, `[rows]` int64, from 0 without gaps."""
        numbers: dict[Any, int] = {}
        return np.array([numbers.setdefault(NAMES[name](t), len(numbers)) for t in self.rows], np.int64)


class StoredTrajectories(Sequence[EncodedTrajectory]):
    """`StoredTrajectories` are the trajectories of a split in a row file, made anew whenever they are asked for.

    The arrays that `Rows` counts with are attributes, and views of the file.

    Args:
        arrays: by name, those of `RAGGED` (with their ends, `NAME_end`) and `PLAIN`, the numbers of `NAMED`, and the
            keys of families.
        origin: file and split of the arrays, by which another process finds them.
        picked: `[rows]` int64, numbers of the rows that are taken, in order; None for all.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], origin: tuple[Path, str], picked: np.ndarray | None = None
    ) -> None:
        self.arrays, self.origin, self.picked = arrays, origin, picked

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path of the file instead of its numbers."""
        return _opened, (*self.origin, self.picked)

    def __len__(self) -> int:
        return len(self.arrays["lengths"]) if self.picked is None else len(self.picked)

    @overload
    def __getitem__(self, row: int) -> EncodedTrajectory: ...
    @overload
    def __getitem__(self, row: slice) -> list[EncodedTrajectory]: ...
    def __getitem__(self, row: Any) -> Any:
        """Return a trajectory, or a list of them for a slice."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = int(row) % len(self)
        return self._trajectory(row if self.picked is None else int(self.picked[row]))

    def pick(self, picked: np.ndarray) -> "StoredTrajectories":
        """Return some of these trajectories, by their numbers."""
        return StoredTrajectories(self.arrays, self.origin, picked if self.picked is None else self.picked[picked])

    def plain(self, name: str) -> np.ndarray:
        """Return one number of each trajectory, `[rows]`: a name of `PLAIN`."""
        return self.arrays[name] if self.picked is None else self.arrays[name][self.picked]

    def numbers(self, name: str) -> np.ndarray:
        """Return the number of each trajectory's prompt, group or family, `[rows]` int64, from 0 without gaps."""
        whole = self.arrays[name]
        return whole if self.picked is None else numbered(np.repeat(whole[self.picked].astype(KEY), 2))

    def family_keys(self) -> np.ndarray:
        """Return two numbers of `KEY` for each trajectory: the hash of the tokens before its first action."""
        whole = self.arrays["family_key"]
        return whole if self.picked is None else whole.reshape(-1, 2)[self.picked].reshape(-1)

    def _entries(self, name: str, row: int) -> np.ndarray:
        """Return a row's part of a ragged array."""
        ends = self.arrays[f"{name}_end"]
        return self.arrays[name][ends[row - 1] if row else 0 : ends[row]]

    def _trajectory(self, row: int) -> EncodedTrajectory:
        """Return the trajectory of a row of the arrays."""
        prompt_id, source = (self._entries(name, row).tobytes().decode() for name in ("prompt_id", "source"))
        example, completion = (int(self.arrays[name][row]) for name in ("example", "completion"))
        runs = self._entries("runs", row).tolist()
        spans = [np.arange(a, b, dtype=np.int32) for a, b in zip(runs[::2], runs[1::2], strict=True)]
        return EncodedTrajectory(
            self._entries("tokens", row),
            spans[0] if len(spans) == 1 else np.concatenate(spans),
            self._rewards(row) if self.arrays["rewarded"][row] else None,
            prompt_id,
            example,
            completion,
            source,
            f"{prompt_id}/{example}" if self.arrays["alone"][row] else prompt_id,
        )

    def _rewards(self, row: int) -> np.ndarray:
        """Return the reward of each action of a row of the arrays, `[A]` float32."""
        rewards, paid = np.zeros(self.arrays["actions"][row], np.float32), self._entries("paid", row).reshape(-1, 2)
        rewards[paid[:, 0]] = np.ascontiguousarray(paid[:, 1]).view("<f4")
        return rewards


def stored_split(file: RowFile, split: str) -> StoredTrajectories:
    """Return the trajectories of a split in a row file."""
    names = (*RAGGED, *(f"{name}_end" for name in RAGGED), *PLAIN, *NAMED, "family_key")
    return StoredTrajectories({name: file[f"{split}/{name}"] for name in names}, (file.path, split))


def _opened(path: Path, split: str, picked: np.ndarray | None) -> StoredTrajectories:
    whole = stored_split(RowFile(path), split)
    return whole if picked is None else whole.pick(picked)


def trajectories_of(part: RowFile) -> StoredTrajectories:
    """Return the trajectories of a part, whose names are not numbered."""
    arrays = {name: part[name] for name in (*RAGGED, *PLAIN)}
    ends = {f"{name}_end": np.cumsum(part[f"{name}_count"]) for name in RAGGED}
    return StoredTrajectories(arrays | ends, (part.path, ""))
