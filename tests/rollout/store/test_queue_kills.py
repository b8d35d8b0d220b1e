"""The buffer of sampled trajectories against a plain list, over any course of events and kills."""

import os
import random
import select
import shutil
import signal
import time
from itertools import groupby

import pytest

from tests.rollout.experience import counts, forked, keep_working, several, uids


class Model:
    """What a buffer should say, told as a list: (uid, group, version, what became of it, at which step)."""

    def __init__(self):
        self.rows = []

    def put(self, trajectories):
        known = {row[0] for row in self.rows}
        for t in trajectories:
            if t.uid not in known:
                known.add(t.uid)
                self.rows.append([t.uid, t.group, t.version, "waiting", 0])

    def waiting(self):
        return [row for row in self.rows if row[3] == "waiting"]

    def lease(self, step, n, oldest):
        mine = [row for row in self.rows if row[3] in ("leased", "trained") and row[4] == step]
        if mine:
            return [row[0] for row in mine]
        for _, group in groupby(self.waiting(), key=lambda row: row[1]):
            group = list(group)
            if oldest is not None and any(row[2] < oldest for row in group):
                for row in group:
                    row[3:] = "stale", step
        chosen = self.waiting()[:n]
        if len(chosen) < n:
            return None
        for row in chosen:
            row[3:] = "leased", step
        return [row[0] for row in chosen]

    def acknowledge(self, step):
        for row in self.rows:
            if row[3:] == ["leased", step]:
                row[3] = "trained"

    def reopen(self, after):
        for row in self.rows:
            if after is not None and row[3] != "waiting":
                row[3:] = ("waiting", 0) if row[4] > after else (row[3].replace("leased", "trained"), row[4])

    def counts(self):
        states = [row[3] for row in self.rows]
        by_state = {name: states.count(name) for name in ("trained", "leased", "waiting", "stale")}
        return counts(accepted=len(states), **by_state)


def tear(directory, rng):
    """What a kill may leave: half a line, half a shard, a shard that the index does not name."""
    for name in ("INDEX", "LEASES"):
        if rng.random() < 0.5:
            with (directory / name).open("ab") as file:
                file.write(b'{"step": 3, "uids": ["w'[: rng.randrange(1, 23)])
    if rng.random() < 0.5:
        (directory / ".experience-999999.parquet.partial").write_bytes(b"PAR1")
    shards = sorted(directory.glob("*.parquet"))
    if shards and rng.random() < 0.5:
        shutil.copy(shards[-1], directory / "experience-999999.parquet")


@pytest.mark.parametrize("seed", range(40))
def test_any_course_of_events_is_as_a_simple_list_says(opened, directory, seed):
    rng, model, buffer = random.Random(seed), Model(), opened()
    each, number, incarnation, step, pending, sent = rng.choice([1, 2, 3]), 0, 0, 0, [], []
    for _ in range(30):
        what = rng.choice(["put", "put", "put", "lease", "lease", "acknowledge", "acknowledge", "again", "reopen"])
        if what == "put":
            size = each * rng.randrange(1, 5)
            new = several(number, number + size, each=each, incarnation=incarnation, version=max(0, step - 2))
            number += size
            sent += new
            batch = new + rng.sample(sent, rng.randrange(0, len(sent))) if rng.random() < 0.3 else new
            buffer.put(batch)
            model.put(batch)
        elif what == "lease" and len(pending) < 2:
            n, oldest = each * rng.randrange(1, 5), rng.choice([None, None, step - 3])
            got = buffer.lease(step + 1, n, oldest=oldest)
            assert (got and uids(got)) == model.lease(step + 1, n, oldest)
            if got:
                step += 1
                pending.append(step)
        elif what == "acknowledge" and pending:
            done = pending.pop(0)
            buffer.acknowledge(done)
            model.acknowledge(done)
        elif what == "again" and pending:
            assert uids(buffer.lease(pending[0], each)) == model.lease(pending[0], each, None)
        elif what == "reopen":
            after = rng.choice([None, rng.randrange(step + 1)])
            buffer.close()
            tear(directory, rng)
            buffer = opened(after=after)
            model.reopen(after)
            number, incarnation = 0, incarnation + 1
            step, pending = (step, pending) if after is None else (after, [])
        assert buffer.waiting == len(model.waiting())
        assert buffer.counts() == model.counts()
        assert {(t.uid, s) for s, t in buffer.trained_trajectories()} == {
            (r[0], r[4]) for r in model.rows if r[3] == "trained"
        }


@pytest.mark.parametrize("kills", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_accepted_is_lost_or_given_twice(opened, directory, kills):
    rng, said = random.Random(0), []
    for incarnation in range(kills):
        child, reader = forked(keep_working, directory, incarnation)
        if select.select([reader.fileno()], [], [], 30)[0]:  # it has begun
            time.sleep(rng.random() * 0.03)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        said += os.fdopen(os.dup(reader.fileno()), "rb").read().decode().splitlines()
        reader.close()
    put, leases, done = _told(said)
    buffer = opened(after=None)
    found = buffer.counts()
    trained = {t.uid: step for step, t in buffer.trained_trajectories()}
    on_disk = {t.uid for t in buffer._shards.read()}
    assert len(put) > 2 * kills
    assert (found["lost"], found["duplicated"]) == (0, 0)
    assert put <= on_disk
    assert len(on_disk - put) <= 6 * kills  # a put that did not return may have happened, one a kill
    assert found["accepted"] == found["trained"] + found["leased"] + found["waiting"]
    assert all(trained[uid] == step for step in done for uid in leases[step])
    assert len({uid for step in leases for uid in leases[step]}) == sum(map(len, leases.values()))


def _told(said):
    """What has returned: uids put, uids by step leased, steps done."""
    words = [line.split() for line in said]
    leases = {}
    for word in words:
        if word[0] == "lease":
            leases.setdefault(int(word[1]), []).append(word[2])
    return {w[1] for w in words if w[0] == "put"}, leases, [int(w[1]) for w in words if w[0] == "done"]
