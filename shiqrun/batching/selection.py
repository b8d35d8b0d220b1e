"""This module drops trajectories that training has no use for: repeated ones, and those without a counterpart."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from itertools import groupby

import numpy as np

from shiqrun.batching.encode import MERGED, EncodedTrajectory
from shiqrun.batching.stored_rows import KEY, NAMES, StoredTrajectories
from shiqrun.data.drops import Drops, drop
from shiqrun.errors import InputError

REPEATED = "the same as another completion of its prompt"
SEEN = "validation, but the prompt is in the training split too"
UNDECIDED = "chosen and rejected are the same, with different rewards"


class DistinctRows:
    """`DistinctRows` keeps the first of every set of trajectories with equal tokens; other groups are other sets."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def kept(self, rows: Iterable[EncodedTrajectory], dropped: Counter[str]) -> list[EncodedTrajectory]:
        """Return the rows that are not as any before, in these rows and those of former calls; count the others."""
        kept = []
        for t in rows:
            name = hashlib.blake2b(t.group.encode(), digest_size=8).digest()
            tokens = hashlib.blake2b(name + t.input_ids.tobytes() + t.action_index.tobytes(), digest_size=16).digest()
            if tokens in self._seen:
                drop(dropped, REPEATED, t.source)
            else:
                self._seen.add(tokens)
                kept.append(t)
        return kept


def drop_repeated(rows: Iterable[EncodedTrajectory], dropped: Counter[str]) -> list[EncodedTrajectory]:
    """Return the first of every set of trajectories with equal tokens; see `DistinctRows`."""
    return DistinctRows().kept(rows, dropped)


def drop_uncompared(
    rows: Sequence[EncodedTrajectory], dropped: Counter[str], method: str | None
) -> Sequence[EncodedTrajectory]:
    """Return the trajectories whose group has another one to compare with, or all where no method compares them."""
    if method is None:
        return rows
    kept: Sequence[EncodedTrajectory]
    if isinstance(rows, StoredTrajectories):
        group = rows.numbers("group")
        picked = np.flatnonzero(np.bincount(group)[group] > 1) if len(group) else group
        kept = rows if len(picked) == len(rows) else rows.pick(picked)
    else:
        sizes = Counter(t.group for t in rows)
        kept = [t for t in rows if sizes[t.group] > 1]
    if len(kept) < len(rows):
        dropped[f"alone with its prompt (algo={method} compares completions of one prompt)"] += len(rows) - len(kept)
    return kept


class TrainedFamilies:
    """`TrainedFamilies` knows the prompts of the training split by their tokens, whatever their texts.

    A template may trim white space, so that prompts of different text are one prompt to the model.

    Args:
        keys: two numbers of `KEY` for each training trajectory: the hash of the tokens before its first action.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.names = np.unique(np.ascontiguousarray(keys, KEY).view("V16"))

    def have(self, keys: np.ndarray) -> np.ndarray:
        """Return of each trajectory with these keys whether its prompt is trained on, `[rows]` bool."""
        return np.isin(np.ascontiguousarray(keys, KEY).view("V16"), self.names)

    def without(self, rows: Sequence[EncodedTrajectory], dropped: Counter[str]) -> list[EncodedTrajectory]:
        """Return the rows whose prompt is not trained on; count the others."""
        seen = self.have(family_keys(rows))
        if seen.any():
            drop(dropped, SEEN, rows[int(seen.argmax())].source, number=int(seen.sum()))
        return [t for t, trained in zip(rows, seen, strict=True) if not trained]


def family_keys(rows: Iterable[EncodedTrajectory]) -> np.ndarray:
    """Return the keys of the trajectories' prompts, as `TrainedFamilies` reads them."""
    if isinstance(rows, StoredTrajectories):
        return rows.family_keys()
    return np.frombuffer(b"".join(map(NAMES["family"], rows)), KEY)


def drop_undecided(rows: Iterable[EncodedTrajectory], dropped: Counter[str]) -> list[EncodedTrajectory]:
    """Return the rows without pairs of equal completions that have different rewards, which contradict each other."""
    kept = []
    for _, same in groupby(rows, lambda t: t.example):
        made = list(same)
        if len(made) == 2 and made[0].group != made[0].prompt_id and _contradict(*made):
            drop(dropped, UNDECIDED, made[0].source, number=2)
        else:
            kept += made
    return kept


def _contradict(one: EncodedTrajectory, other: EncodedTrajectory) -> bool:
    if one.rewards is None or other.rewards is None or not np.array_equal(one.input_ids, other.input_ids):
        return False
    return not np.array_equal(one.rewards, other.rewards)


CURES = {
    "no actions": "give rows an assistant message",
    "no prompt": "give rows a message of the user before the first one of the assistant",
    "empty completion": "give rows an answer",
    MERGED: "the tokenizer joins the white space that ends the generation prompt with what follows it; use the "
    "tokenizer that the chat template was made for, or a template whose generation prompt does not end in white space",
}
"""What helps where rows are dropped for a reason."""


def expect_training_rows(train: Sized, val: Sized, dropped: Counter[str]) -> None:
    """Check that a trajectory is left to train on.

    Raises:
        InputError: none is; the message counts the reasons, with the first row of each.
    """
    if len(train):
        return
    first = dropped.first if isinstance(dropped, Drops) else {}
    places = {reason: f" (first: {row.place})" for reason, row in first.items()}
    why = [f"{n} {reason}{places.get(reason, '')}" for reason, n in dropped.most_common()]
    why += [f"all {len(val)} are held out for validation (data.val_fraction)"] if len(val) else []
    reasons = ", ".join(why) or "the data set is empty"
    most = dropped.most_common(1)[0][0] if dropped else ""
    advice = "raise data.max_length" if any("max_length" in reason for reason in dropped) else "look at the data"
    raise InputError(f"no training trajectory is left: {reasons}; {CURES.get(most, advice)}")
