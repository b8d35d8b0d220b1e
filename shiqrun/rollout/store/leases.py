"""LEASES, a journal, records which optimiser step got which trajectories, which were too old, and which steps are done.

A trajectory is leased when a step gets it, trained when that step is acknowledged, and stale when the weights that
sampled it were too old.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shiqrun.rollout.store.journal import Journal, Row

ADVICE = "restore it from a copy; without it all experience waits again, also what these weights were trained on"
LEASE, STALE, DONE = frozenset({"step", "uids"}), frozenset({"step", "stale"}), frozenset({"done"})


class Ledger:
    """The ledger holds the leases of trajectories, read from the journal LEASES and appended to it.

    A line is `{"step", "uids", "stale"}`, `{"step", "stale"}` where too few were left for a lease, or `{"done": step}`.

    Args:
        path: of the journal; it need not exist.
        after: the step of the checkpoint that training resumes from. Leases of later steps are undone. Leases of steps
            up to it count as trained, acknowledged or not, because the checkpoint's weights contain them. None where
            the trainer has lived on: every lease stays.

    Attributes:
        leases: uids by step.
        stale: uids of stale trajectories, by the step that dropped them.
        done: acknowledged steps.

    Raises:
        InputError: a line before the last is broken.
    """

    def __init__(self, path: Path, after: int | None) -> None:
        self._journal = Journal(path, _fits, ADVICE)
        self.leases: dict[int, list[str]] = {}
        self.stale: dict[int, list[str]] = {}
        self.done: set[int] = set()
        if after is not None:
            rows = _up_to(after, self._journal.rows)
            if rows != self._journal.rows:
                self._journal.rewrite(rows)
        for row in self._journal.rows:
            self._know(row)

    def _know(self, row: Row) -> None:
        if "done" in row:
            self.done.add(row["done"])
        if "stale" in row:
            self.stale.setdefault(row["step"], []).extend(row["stale"])
        if "uids" in row:
            self.leases.setdefault(row["step"], []).extend(row["uids"])

    def _add(self, row: Row) -> None:
        self._journal.append(row)
        self._know(row)

    def lease(self, step: int, uids: Sequence[str], stale: Sequence[str]) -> None:
        """Record that a step got the trajectories `uids`, and that those of `stale` were too old for it."""
        self._add({"step": step, "uids": [*uids], "stale": [*stale]})

    def drop(self, step: int, stale: Sequence[str]) -> None:
        """Record that trajectories were too old for a step that has got none yet."""
        self._add({"step": step, "stale": [*stale]})

    def finish(self, step: int) -> None:
        """Record that the optimiser step is done: its trajectories are trained on."""
        self._add({"done": step})

    def trained_steps(self) -> dict[str, int]:
        """Return, by uid, the step that trained on each trajectory."""
        return {uid: step for step in self.leases if step in self.done for uid in self.leases[step]}

    def pending(self) -> dict[str, int]:
        """Return, by uid, the step of each trajectory that is leased to a step not yet done."""
        return {uid: step for step in self.leases if step not in self.done for uid in self.leases[step]}


def _fits(row: Row) -> bool:
    """Return whether a line of LEASES has the keys of its kind, with values of their types."""
    if not any(keys <= row.keys() for keys in (LEASE, STALE, DONE)):
        return False
    lists = [row[name] for name in ("uids", "stale") if name in row]
    return isinstance(row.get("step", row.get("done")), int) and all(
        isinstance(uids, list) and all(isinstance(uid, str) for uid in uids) for uids in lists
    )


def _up_to(after: int, rows: Iterable[Row]) -> list[Row]:
    """Return the lines of LEASES of steps up to `after`, with an acknowledgement of each."""
    kept = [row for row in rows if row.get("step", after + 1) <= after]
    steps = dict.fromkeys(row["step"] for row in kept if "uids" in row)
    return kept + [{"done": step} for step in steps]


def gaps(uids: Iterable[str]) -> int:
    """Count the trajectory numbers missing between the first and the last of each worker's incarnation.

    A uid is `worker-incarnation-number`, and workers number without gaps. Other uids are not counted.
    """
    numbers: dict[str, set[int]] = {}
    for uid in uids:
        worker, _, number = uid.rpartition("-")
        if number.isdecimal():
            numbers.setdefault(worker, set()).add(int(number))
    return sum(max(known) - min(known) + 1 - len(known) for known in numbers.values())


def audit(on_disk: Counter[str], ledger: Ledger, waiting: Iterable[str]) -> dict[str, int]:
    """Count the trajectories by what became of them: accepted, trained, leased, waiting, stale, lost, duplicated.

    Lost are trajectories on the disk without a state, trajectories with a state that are not on the disk, and numbers
    missing between two of a worker. Duplicated are trajectories that are on the disk twice, leased to two steps, or
    leased and still waiting.

    Args:
        on_disk: how often each uid is on the disk.
        ledger: the leases.
        waiting: uids of trajectories that wait.
    """
    trained = [uid for step, uids in ledger.leases.items() if step in ledger.done for uid in uids]
    leased = [uid for step, uids in ledger.leases.items() if step not in ledger.done for uid in uids]
    stale, wait = [uid for uids in ledger.stale.values() for uid in uids], [*waiting]
    held = Counter([*trained, *leased, *stale, *wait])
    lost = len(on_disk.keys() - held.keys()) + len(held.keys() - on_disk.keys())
    return {
        "accepted": len(on_disk),
        "trained": len(set(trained)),
        "leased": len(leased),
        "waiting": len(wait),
        "stale": len(stale),
        "lost": lost + gaps(on_disk.keys() | held.keys()),
        "duplicated": _more_than_once(on_disk) + _more_than_once(held),
    }


def _more_than_once(count: Mapping[str, int]) -> int:
    return sum(number > 1 for number in count.values())
