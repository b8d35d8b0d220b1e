"""Which optimiser step got which trajectories: a journal, LEASES, of leases, of what was too old, and of steps done."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shiqrun.errors import InputError
from shiqrun.rollout.store.journal import Journal, Row

ADVICE = "restore it from a copy; without it all experience waits again, also what these weights were trained on"
LEASE, STALE, DONE = frozenset({"step", "uids"}), frozenset({"step", "stale"}), frozenset({"done"})


class Ledger:
    """Who got what.

    A line is `{"step", "uids", "stale"}`, `{"step", "stale"}` where too few were left for a lease, or `{"done": step}`.

    Args:
        path: of the journal; it need not be there.
        after: the step of the weights that go on. What later steps got is given back, and what steps up to it got was
            trained, whether the journal knows that they were done or not: the weights contain them. None where the
            trainer has lived on: what is leased stays leased.

    Attributes:
        leases: uids by step.
        stale: uids that were too old, by the step that dropped them.
        done: steps that were acknowledged.

    Raises:
        InputError: a line before the last is broken.
    """

    def __init__(self, path: Path, after: int | None) -> None:
        self._journal = Journal(path, (LEASE, STALE, DONE), ADVICE)
        self.leases: dict[int, list[str]] = {}
        self.stale: dict[int, list[str]] = {}
        self.done: set[int] = set()
        for number, row in enumerate(self._journal.rows, 1):
            if not _fits(row):
                raise InputError(f"{path}:{number}: a broken line; {ADVICE}")
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
        """A step got some, and others were too old for it."""
        self._add({"step": step, "uids": [*uids], "stale": [*stale]})

    def drop(self, step: int, stale: Sequence[str]) -> None:
        """Some were too old for a step that got none yet."""
        self._add({"step": step, "stale": [*stale]})

    def finish(self, step: int) -> None:
        """The optimiser step is done."""
        self._add({"done": step})

    def trained(self) -> dict[str, int]:
        """The step of each trajectory that was trained on."""
        return {uid: step for step in self.leases if step in self.done for uid in self.leases[step]}

    def pending(self) -> dict[str, int]:
        """The step of each trajectory that is leased to a step not done."""
        return {uid: step for step in self.leases if step not in self.done for uid in self.leases[step]}


def _fits(row: Row) -> bool:
    """Whether the entries have their types."""
    lists = [row[name] for name in ("uids", "stale") if name in row]
    return isinstance(row.get("step", row.get("done")), int) and all(
        isinstance(uids, list) and all(isinstance(uid, str) for uid in uids) for uids in lists
    )


def _up_to(after: int, rows: Iterable[Row]) -> list[Row]:
    """The lines of steps up to `after`, each lease followed by its end."""
    kept = [row for row in rows if row.get("step", after + 1) <= after]
    steps = dict.fromkeys(row["step"] for row in kept if "uids" in row)
    return kept + [{"done": step} for step in steps]


def gaps(uids: Iterable[str]) -> int:
    """How many numbers are missing between the first and the last of each worker's incarnation.

    A uid is `worker-incarnation-number`; workers number without gaps. Others are not counted.
    """
    numbers: dict[str, set[int]] = {}
    for uid in uids:
        worker, _, number = uid.rpartition("-")
        if number.isdecimal():
            numbers.setdefault(worker, set()).add(int(number))
    return sum(max(known) - min(known) + 1 - len(known) for known in numbers.values())


def audit(on_disk: Counter[str], ledger: Ledger, waiting: Iterable[str]) -> dict[str, int]:
    """What became of every trajectory: accepted, trained, leased, waiting, stale, lost, duplicated.

    Lost are those on the disk that nobody has, those that somebody had and that are not on the disk, and numbers
    missing between two of a worker. Duplicated are those on the disk twice, and those given to two steps, or to one and
    still waiting.

    Args:
        on_disk: how often each uid is there.
        ledger: who got what.
        waiting: uids.
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
