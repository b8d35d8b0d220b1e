"""The experience queue stands between sampling and training; each accepted trajectory is on disk and trained on once.

Sampling puts trajectories; training leases a batch for an optimiser step and acknowledges it when the step is done.
After a crash, leases newer than the checkpoint return to the queue, before what was sampled later.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shiqrun.errors import InputError
from shiqrun.rollout.store.leases import Ledger, audit
from shiqrun.rollout.store.shards import Shards
from shiqrun.rollout.trajectory import SampledTrajectory

log = logging.getLogger("shiqrun")
LEASES = "LEASES"


class Buffer:
    """A buffer is a first-in, first-out queue of groups of trajectories over `Shards` and a `Ledger`, safe for threads.

    The trajectories that wait or are leased are in memory, and the uids of all.

    Args:
        directory: `RUN/experience`; it need not exist.
        after: the step of the checkpoint that training resumes from, 0 for the reference's weights. Leases of later
            steps are undone, and their trajectories wait again in their former places; those of earlier steps count as
            trained. None where only this process has died and the trainer lives: every lease stays.

    Raises:
        InputError: another process has it open, its files are damaged, or what steps up to `after` trained on is
            missing; the message names the file.
    """

    def __init__(self, directory: Path, *, after: int | None = 0) -> None:
        self._mutex = threading.RLock()
        self._shards = Shards(directory)
        try:
            self._ledger = Ledger(directory / LEASES, after)
            self._after = after or 0
            self._load()
            self._expect_trained(after or 0)
        except BaseException:
            self._shards.close()
            raise

    def close(self) -> None:
        """Release the queue's directory, so that another process may open it."""
        self._shards.close()

    def _load(self) -> None:
        self._known = {uid for uids in self._shards.uids() for uid in uids}
        self._on_disk: Counter[str] = Counter()
        self._counted = 0
        self._queue: list[list[SampledTrajectory]] = []
        self._waiting = 0
        pending = self._ledger.pending()
        gone = self._ledger.trained_steps().keys() | {uid for uids in self._ledger.stale.values() for uid in uids}
        self._leased: dict[int, list[SampledTrajectory]] = {
            s: [] for s in self._ledger.leases if s not in self._ledger.done
        }
        seen = set()
        for trajectory in self._shards.read(lambda uid: uid not in gone):
            if trajectory.uid in seen:
                continue
            seen.add(trajectory.uid)
            if trajectory.uid in pending:
                self._leased[pending[trajectory.uid]].append(trajectory)
            else:
                self._wait(trajectory)
        if self._known:
            log.info("%s: %d trajectories, %d of them wait", self._shards.directory, len(self._known), self._waiting)

    def _expect_trained(self, after: int) -> None:
        """Check that what the checkpoint's weights were trained on is there: each of their steps has leased some.

        Raises:
            InputError: LEASES lacks a step, or the shards a trajectory of one.
        """
        if not after:
            return
        directory, ledger = self._shards.directory, self._ledger
        if lacking := sorted(set(range(1, after + 1)) - ledger.leases.keys()):
            raise InputError(
                f"{directory / LEASES}: {len(lacking)} of the {after} steps of the checkpoint are missing, first step "
                f"{lacking[0]}; restore {directory} from a copy, or start a run anew"
            )
        trained = {uid for step in range(1, after + 1) for uid in ledger.leases[step]}
        if gone := sorted(trained - self._known):
            raise InputError(
                f"{directory}: {len(gone)} of {len(trained)} trajectories that the checkpoint was trained on are in no "
                f"shard, first {gone[0]}; restore {directory} from a copy, or start a run anew"
            )

    def _wait(self, trajectory: SampledTrajectory) -> None:
        """Add a trajectory to its group at the end of the queue."""
        if self._queue and self._queue[-1][0].group == trajectory.group:
            self._queue[-1].append(trajectory)
        else:
            self._queue.append([trajectory])
        self._waiting += 1

    @property
    def waiting(self) -> int:
        """Return the number of trajectories that no optimiser step has got and that are not too old."""
        return self._waiting

    def workers(self) -> set[str]:
        """Return the names of all workers that have sampled: uids without the number."""
        return {uid.rpartition("-")[0] for uid in self._known}

    def put(self, trajectories: Sequence[SampledTrajectory]) -> int:
        """Accept the trajectories whose uids are new, and return their number; they are on disk when this returns.

        Raises:
            OSError: they cannot be written; none is accepted.
        """
        with self._mutex:
            new: dict[str, SampledTrajectory] = {}
            for trajectory in trajectories:
                if trajectory.uid not in self._known:
                    new.setdefault(trajectory.uid, trajectory)
            self._shards.append([*new.values()])
            self._known.update(new)
            for trajectory in new.values():
                self._wait(trajectory)
            return len(new)

    def lease(self, step: int, n: int, *, oldest: int | None = None) -> list[SampledTrajectory] | None:
        """Return the n trajectories of an optimiser step, the oldest first, or None if fewer wait.

        A step that asks again gets the same ones. Groups stay whole.

        Args:
            step: number of the optimiser step, from 1.
            n: number of trajectories, a multiple of the completions of a prompt.
            oldest: smallest policy version; groups with an older member become stale (they stay on the disk).

        Raises:
            ValueError: the step is done, or a group would have to be divided.
        """
        with self._mutex:
            if step in self._leased:
                return [*self._leased[step]]
            if step in self._ledger.done or step <= self._after:
                raise ValueError(f"step {step} is done; lease for later ones")
            stale = self._older_than(oldest)
            chosen = self._first(n, stale)
            if chosen is None:
                if stale:
                    self._ledger.drop(step, _uids(stale))
                    self._leave(stale)
                return None
            self._ledger.lease(step, _uids(chosen), _uids(stale))
            self._leave(stale + chosen)
            self._leased[step] = [t for group in chosen for t in group]
            return [*self._leased[step]]

    def _older_than(self, oldest: int | None) -> list[list[SampledTrajectory]]:
        return [] if oldest is None else [g for g in self._queue if min(t.version for t in g) < oldest]

    def _first(self, n: int, without: list[list[SampledTrajectory]]) -> list[list[SampledTrajectory]] | None:
        """Return the first waiting groups that hold n trajectories and are not in `without`, or None if fewer wait."""
        if self._waiting - sum(map(len, without)) < n:
            return None
        skipped, chosen, left = set(map(id, without)), list[list[SampledTrajectory]](), n
        for group in self._queue:
            if left == 0:
                break
            if id(group) in skipped:
                continue
            if len(group) > left:
                raise ValueError(
                    f"group {group[0].group} has {len(group)} trajectories, and {left} of {n} are left in the lease; "
                    "lease a multiple of the completions of a prompt"
                )
            chosen.append(group)
            left -= len(group)
        return chosen

    def _leave(self, groups: list[list[SampledTrajectory]]) -> None:
        """Take groups of trajectories out of the queue."""
        gone = set(map(id, groups))
        self._queue = [group for group in self._queue if id(group) not in gone]
        self._waiting -= sum(map(len, groups))

    def acknowledge(self, step: int) -> None:
        """Record that the optimiser step is done and its trajectories are trained; doing it again changes nothing.

        Raises:
            ValueError: the step has no lease.
        """
        with self._mutex:
            if step <= self._after or step in self._ledger.done:
                return
            if step not in self._leased:
                raise ValueError(f"step {step} has no lease; lease first")
            self._ledger.finish(step)
            del self._leased[step]

    def trained_trajectories(self, since_step: int = 0) -> Iterator[tuple[int, SampledTrajectory]]:
        """Yield (step, trajectory) of all that steps from `since_step` on trained on, in the order of sampling."""
        with self._mutex:
            steps = {uid: step for uid, step in self._ledger.trained_steps().items() if step >= since_step}
        for trajectory in self._shards.read(lambda uid: uid in steps):
            yield steps[trajectory.uid], trajectory

    def counts(self) -> dict[str, int]:
        """Count all trajectories by what became of them, from the uids on disk and the leases: see `audit`.

        Its time grows with the number of all trajectories; that of `waiting` does not.
        """
        with self._mutex:
            for uids in self._shards.uids(self._counted):
                self._on_disk.update(uids)
                self._counted += 1
            return audit(self._on_disk, self._ledger, _uids(self._queue))


def _uids(groups: list[list[SampledTrajectory]]) -> list[str]:
    return [t.uid for group in groups for t in group]
