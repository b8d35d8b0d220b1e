import json
import shutil
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from shiqrun.errors import InputError
from shiqrun.rollout.store.queue import Buffer
from shiqrun.util.jsonl import append_lines
from tests.rollout.experience import Disk, counts, made, needs_proc, restored, same, several, uids


def test_what_comes_first_is_given_first_as_it_was(opened):
    buffer, all_of_them = opened(), several(0, 10)
    assert buffer.put(all_of_them[:4]) == 4
    assert buffer.put(all_of_them[4:]) == 6
    assert buffer.waiting == 10
    assert buffer.lease(1, 3) == all_of_them[:3]
    assert buffer.lease(2, 3) == all_of_them[3:6]
    assert buffer.waiting == 4
    assert buffer.lease(3, 5) is None
    assert buffer.counts() == counts(accepted=10, leased=6, waiting=4)


def test_each_uid_is_accepted_once(opened):
    buffer, all_of_them = opened(), several(0, 4)
    assert buffer.put([all_of_them[0], all_of_them[1], all_of_them[0], replace(all_of_them[1], reward=9.0)]) == 2
    buffer.lease(1, 1)
    buffer.acknowledge(1)
    assert buffer.put(all_of_them) == 2
    assert buffer.put(all_of_them) == 0
    assert opened(after=1).put(all_of_them) == 0
    assert buffer.lease(2, 3) == all_of_them[1:]
    assert buffer.put([]) == 0
    assert buffer.counts() == counts(accepted=4, trained=1, leased=3)


def test_a_step_that_asks_again_gets_the_same(opened):
    buffer = opened()
    buffer.put(several(0, 6))
    first = buffer.lease(1, 2)
    assert buffer.lease(1, 2) == buffer.lease(1, 4) == first
    again = opened(after=None).lease(1, 2)
    assert [same(*pair) for pair in zip(again, first, strict=True)] == [True, True]
    assert opened(after=None).counts() == counts(accepted=6, leased=2, waiting=4)


def test_what_is_given_away_is_the_callers_list(opened):
    buffer = opened()
    buffer.put(several(0, 2))
    for _ in range(2):
        buffer.lease(1, 2).clear()
    assert uids(buffer.lease(1, 2)) == ["w-0-0-0", "w-0-0-1"]


def test_done_steps_are_trained_once(opened):
    buffer = opened()
    buffer.put(several(0, 4))
    buffer.lease(1, 2)
    buffer.lease(2, 1)
    for _ in range(2):
        buffer.acknowledge(1)
    assert buffer.counts() == counts(accepted=4, trained=2, leased=1, waiting=1)
    assert [(s, t.uid) for s, t in buffer.trained_trajectories()] == [(1, "w-0-0-0"), (1, "w-0-0-1")]
    with pytest.raises(ValueError, match="step 1 is done"):
        buffer.lease(1, 2)
    with pytest.raises(ValueError, match="step 3 has no lease"):
        buffer.acknowledge(3)


def test_groups_stay_whole(opened):
    buffer = opened()
    buffer.put(several(0, 3, each=3))
    buffer.put(several(3, 9, each=3))
    with pytest.raises(ValueError, match=r"group w-0-0-of-1 has 3 trajectories, and 1 of 4 are left in the lease"):
        buffer.lease(1, 4)
    assert uids(buffer.lease(1, 6)) == uids(several(0, 6))
    with pytest.raises(ValueError, match="has 3 trajectories, and 2 of 2"):
        buffer.lease(2, 2)
    assert buffer.counts() == counts(accepted=9, leased=6, waiting=3)


def test_groups_with_an_old_member_are_dropped_and_kept_on_the_disk(opened, directory):
    buffer = opened()
    versions = [3, 1, 2, 2, 1, 1, 5, 5]
    buffer.put([made(n, each=2, version=v) for n, v in enumerate(versions)])
    assert uids(buffer.lease(1, 2, oldest=2)) == ["w-0-0-2", "w-0-0-3"]
    assert buffer.counts() == counts(accepted=8, leased=2, waiting=2, stale=4)
    assert buffer.lease(2, 2, oldest=9) is None
    assert buffer.counts() == counts(accepted=8, leased=2, stale=6)
    assert opened(after=1).counts() == counts(accepted=8, trained=2, waiting=2, stale=4)
    assert opened(after=0).waiting == 8
    data = opened()._shards.read()
    assert [t.version for t in data] == versions


def test_nothing_is_written_where_nothing_is_given(opened, directory):
    buffer = opened()
    buffer.put(several(0, 2))
    assert buffer.lease(1, 3, oldest=0) is None
    assert not (directory / "LEASES").exists()


@pytest.mark.parametrize(
    ("after", "expected", "waits"),
    [
        (0, {"waiting": 8}, range(8)),
        (1, {"trained": 2, "waiting": 6}, range(2, 8)),
        (2, {"trained": 4, "waiting": 4}, range(4, 8)),  # what step 2 got is in its checkpoint, acknowledged or not
        (3, {"trained": 6, "waiting": 2}, range(6, 8)),
        (None, {"trained": 2, "leased": 4, "waiting": 2}, range(6, 8)),
    ],
)
def test_leases_after_the_checkpoint_are_undone(opened, after, expected, waits):
    buffer, whole = opened(), several(0, 8)
    buffer.put(whole)
    for step in (1, 2, 3):
        buffer.lease(step, 2)
    buffer.acknowledge(1)
    for _ in range(2):
        buffer = opened(after=after)
        assert buffer.counts() == counts(accepted=8, **expected)
    trained = [uid for _, uid in sorted((s, t.uid) for s, t in buffer.trained_trajectories())]
    assert trained == uids(whole)[: expected.get("trained", 0)]
    got = buffer.lease(9, len(waits))
    assert [same(t, whole[n]) for t, n in zip(got, waits, strict=True)] == [True] * len(waits)


def test_what_waits_again_comes_before_what_came_later(opened):
    buffer = opened()
    buffer.put(several(0, 4))
    buffer.lease(1, 2)
    buffer.acknowledge(1)
    buffer.put(several(4, 6))
    buffer = opened(after=0)
    buffer.put(several(0, 2, incarnation=1))
    assert uids(buffer.lease(1, 8)) == [*uids(several(0, 6)), "w-0-1-0", "w-0-1-1"]


def test_steps_of_a_checkpoint_are_not_leased_again(opened):
    buffer = opened()
    buffer.put(several(0, 4))
    buffer.lease(1, 2)
    buffer = opened(after=1)
    with pytest.raises(ValueError, match="step 1 is done"):
        buffer.lease(1, 2)
    buffer.acknowledge(1)
    assert uids(buffer.lease(2, 2)) == ["w-0-0-2", "w-0-0-3"]


def _lose_all(directory):
    shutil.rmtree(directory)


def _lose_a_shard_with_its_line(directory):
    first, *others = (directory / "INDEX").read_text().splitlines(keepends=True)
    (directory / json.loads(first)["name"]).unlink()
    (directory / "INDEX").write_text("".join(others))


@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (lambda d: (d / "LEASES").unlink(), "LEASES: 2 of the 2 steps of the checkpoint are missing, first step 1"),
        (_lose_all, "LEASES: 2 of the 2 steps"),
        (_lose_a_shard_with_its_line, "2 of 4 trajectories that the checkpoint was trained on are in no shard"),
    ],
)
def test_what_a_checkpoint_was_trained_on_must_be_there(opened, directory, lose, told):
    buffer = opened()
    for step in (1, 2):
        buffer.put(several(2 * step, 2 * step + 2))
        buffer.lease(step, 2)
        buffer.acknowledge(step)
    buffer.close()
    lose(directory)
    with pytest.raises(InputError, match=told):
        Buffer(directory, after=2)


def test_training_goes_on_from_what_was_trained(opened):
    buffer, whole = opened(), several(0, 9)
    for step in (1, 2, 3):
        buffer.put(whole[3 * step - 3 : 3 * step])
        buffer.lease(step, 3)
        buffer.acknowledge(step)
    found = list(opened(after=3).trained_trajectories(2))
    assert [step for step, _ in found] == [2, 2, 2, 3, 3, 3]
    assert [same(t, w) for (_, t), w in zip(found, whole[3:], strict=True)] == [True] * 6


def test_a_number_that_is_missing_is_lost(opened):
    buffer = opened()
    buffer.put([made(n) for n in (4, 5, 8)] + [made(n, incarnation=1) for n in (0, 2)] + [made(1, worker="x")])
    assert buffer.counts() == counts(accepted=6, waiting=6, lost=3)
    buffer.put([made(7)])
    assert buffer.counts() == counts(accepted=7, waiting=7, lost=2)


def test_what_is_in_two_leases_or_gone_from_the_disk_is_counted(opened, directory):
    buffer = opened()
    buffer.put(several(0, 4))
    buffer.lease(1, 2)
    buffer.acknowledge(1)
    line = {"step": 2, "uids": ["w-0-0-1", "w-0-0-2", "w-0-0-9"], "stale": ["w-0-0-3"]}
    append_lines(directory / "LEASES", [line], sealed=True)
    found = opened(after=None).counts()
    assert (found["duplicated"], found["lost"]) == (1, 1 + 5)  # 9 is not on the disk, and 4 to 8 are missing


def test_what_is_on_the_disk_and_nobody_has_is_lost(opened):
    buffer = opened()
    buffer.put(several(0, 2))
    buffer._shards.append(several(2, 4))
    assert buffer.counts() == counts(accepted=4, waiting=2, lost=2)


def test_what_is_on_the_disk_twice_is_counted_and_given_once(opened):
    buffer = opened()
    buffer.put(several(0, 2))
    buffer._shards.append(several(1, 3))
    buffer = opened()
    assert buffer.counts() == counts(accepted=3, waiting=3, duplicated=1)
    assert uids(buffer.lease(1, 3)) == uids(several(0, 3))


def test_leases_cut_at_every_byte(opened, directory, tmp_path):
    buffer = opened()
    buffer.put([made(n, each=2, version=n // 4) for n in range(12)])
    buffer.lease(1, 2)
    buffer.acknowledge(1)
    assert buffer.lease(2, 20, oldest=1) is None  # drops one group that is too old
    buffer.lease(2, 4)
    buffer.acknowledge(2)
    text = (directory / "LEASES").read_bytes()
    said = {"leased": [0, 2, 0, 0, 4, 0], "trained": [0, 0, 2, 2, 2, 6], "stale": [0, 0, 0, 2, 2, 2]}
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    for size in range(len(text) + 1):
        (copy / "LEASES").write_bytes(text[:size])
        lines = text[:size].count(b"\n")
        found = {name: number[lines] for name, number in said.items()}
        assert opened(copy, after=None).counts() == counts(accepted=12, waiting=12 - sum(found.values()), **found)
        assert (copy / "LEASES").stat().st_size == text[:size].rfind(b"\n") + 1
    assert lines == 5


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"step": 1}', b'{"step": 1, "uids": 3}', b'{"done": "1"}', b"\0\0"])
def test_a_broken_line_amid_leases_is_named(opened, directory, line):
    buffer = opened()
    buffer.put(several(0, 2))
    buffer.lease(1, 1)
    buffer.acknowledge(1)
    buffer.close()
    first, second = (directory / "LEASES").read_bytes().splitlines(keepends=True)
    (directory / "LEASES").write_bytes(first + line + b"\n" + second)
    for after in (None, 1):
        with pytest.raises(InputError, match="LEASES:2: a broken line; restore it"):
            Buffer(directory, after=after)
    (directory / "LEASES").unlink()
    assert opened(after=None).waiting == 2


@needs_proc
def test_a_power_cut_undoes_nothing_that_has_returned(opened, directory, tmp_path, monkeypatch):
    disk = Disk(directory, monkeypatch)

    def left(buffer):
        """What is there after a power cut is what is there now."""
        with closing(Buffer(restored(tmp_path / "after", disk.states[-1]), after=None)) as after:
            assert after.counts() == buffer.counts()

    buffer = opened()
    for step in (1, 2, 3):
        buffer.put(several(3 * step - 3, 3 * step, version=step))
        left(buffer)
        buffer.lease(step, 2)
        left(buffer)
        buffer.acknowledge(step)
        left(buffer)
    left(opened(after=1))
    assert opened(after=None).counts() == counts(accepted=9, trained=2, waiting=7)


def test_a_second_buffer_is_refused(opened, directory):
    opened()
    with pytest.raises(InputError, match="experience: another process writes here"):
        Buffer(directory)


def test_threads_share_a_buffer(opened):
    buffer, got = opened(), []
    workers = [
        threading.Thread(target=lambda k=k: [buffer.put(several(n, n + 3, incarnation=k)) for n in range(0, 30, 3)])
        for k in range(3)
    ]
    for worker in workers:
        worker.start()
    for step in range(1, 10):
        while (batch := buffer.lease(step, 10)) is None:
            time.sleep(0.001)
        got += uids(batch)
        buffer.acknowledge(step)
    for worker in workers:
        worker.join()
    assert len(set(got)) == len(got) == 90
    assert buffer.counts() == counts(accepted=90, trained=90)
