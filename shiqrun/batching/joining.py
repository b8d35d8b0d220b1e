"""`join` makes one table of the encoded data sets of a mixture, in which no prompt of validation is trained on.

Each data set is read, encoded and stored by itself, so that a mixture finds the rows that a run on one of them left.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from shiqrun.batching.encoded_data import EncodedData
from shiqrun.batching.fingerprints import fingerprint
from shiqrun.batching.joined_trajectories import JoinedTrajectories
from shiqrun.batching.prompt_names import joined_names
from shiqrun.batching.rows import Rows
from shiqrun.batching.selection import SEEN, TrainedFamilies, family_keys
from shiqrun.batching.shares import Parts
from shiqrun.data.drops import Drops, drop

log = logging.getLogger("shiqrun")


def join(parts: Mapping[str, EncodedData], weights: Sequence[float]) -> EncodedData:
    """Return the encoded data sets of a mixture as one.

    A validation prompt that another part trains on is left out and counted, so that the training split of every part
    stays as it is.

    Args:
        parts: each part by its name.
        weights: of the parts in their order, passes over a part in an epoch.

    Raises:
        InputError: a weight leaves no unit of a part.
    """
    trained = {name: family_keys(part.train.trajectories) for name, part in parts.items()}
    dropped = Drops()
    validation, prints = {}, []
    for name, part in parts.items():
        lost = Drops(part.dropped)
        others = [keys for other, keys in trained.items() if other != name]
        validation[name] = val = _without(part.val, others, lost)
        whole = len(val) == len(part.val)
        prints.append(part.fingerprint if whole else fingerprint(part.train, val))
        dropped.update(lost.of_part(name))
    train = _joined({name: part.train for name, part in parts.items()}, weights)
    val = _joined(validation, weights)
    for line in described(train, val):
        log.info(line)
    return EncodedData(
        train,
        val,
        dropped,
        prints[0] if len(prints) == 1 else hashlib.blake2b(" ".join(prints).encode(), digest_size=16).hexdigest(),
        joined_names([part.prompts for part in parts.values()]),
    )


def _without(val: Rows, trained: Sequence[np.ndarray], dropped: Counter[str]) -> Rows:
    """Return the rows whose prompt no other part trains on; count the others."""
    if not len(val) or not trained:
        return val
    seen = TrainedFamilies(np.concatenate(trained)).have(family_keys(val.trajectories))
    if not seen.any():
        return val
    drop(dropped, SEEN, val.trajectories[int(seen.argmax())].source, number=int(seen.sum()))
    return val.select(np.flatnonzero(~seen).tolist())


def _joined(parts: Mapping[str, Rows], weights: Sequence[float]) -> Rows:
    """Return the rows of all parts as one table."""
    first = next(iter(parts.values()))
    rows = JoinedTrajectories({name: part.trajectories for name, part in parts.items()})
    number = Parts(tuple(parts), tuple(weights), rows.part_numbers())
    return Rows(rows, first.pad, together=first.together, compared=first.compared, source=first.source, parts=number)


def rows_by_part(encoded: EncodedData) -> dict[str, int]:
    """Return the number of trajectories of each part of a mixture in each split, as `trajectories/SPLIT/PART`."""
    return {
        f"trajectories/{split}/{name}": size
        for split, rows in (("train", encoded.train), ("val", encoded.val))
        if rows.parts is not None
        for name, size in zip(rows.parts.names, _sizes(rows), strict=True)
    }


def described(train: Rows, val: Rows) -> list[str]:
    """Return a line for each part of a mixture: rows, units, passes and share of the steps; and one for all."""
    parts, shares = train.parts, train.shares
    if parts is None or shares is None:
        return []
    sizes, held = (_sizes(rows) for rows in (train, val))
    visits = sum(shares.visits)
    unit = "prompts" if train.together else "rows"
    lines = [
        f"part {name}: {size:,} rows and {out:,} of validation, an epoch visits {visited:,} of {units:,} {unit} "
        f"({visited / units:.3g} passes), {visited / visits:.1%} of the steps"
        for name, size, out, units, visited in zip(parts.names, sizes, held, shares.units, shares.visits, strict=True)
    ]
    whole = f"mixture of {len(parts.names)}: {len(train):,} rows and {len(val):,} of validation, "
    return [*lines, whole + f"{visits:,} visits of {unit} an epoch"]


def _sizes(rows: Rows) -> list[int]:
    """Return the number of rows of each part."""
    assert rows.parts is not None
    found: list[int] = np.bincount(rows.parts.number, minlength=len(rows.parts.names)).tolist()
    return found
