import json
import os
import shutil
import signal

import numpy as np
import pytest

from shiqrun.cli import main
from shiqrun.data.jsonl import Jsonl
from shiqrun.errors import InputError
from shiqrun.rollout.store.shards import Shards
from tests.rollout.experience import Disk, forked, hold, made, needs_proc, restored, same, several, uids


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "experience"


def filled(directory, *sizes):
    """Shards of those sizes, closed; the trajectories."""
    shards, whole = Shards(directory), several(0, sum(sizes), each=2)
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        shards.append(whole[end - size : end])
    shards.close()
    return whole


def opened(directory):
    """The uids that it holds when it is opened anew."""
    shards = Shards(directory)
    found = uids(shards.read())
    assert [uid for part in shards.uids() for uid in part] == found
    assert len(shards) == len(found)
    shards.close()
    return found


def test_what_is_read_is_what_was_written(directory):
    further = [
        made(5, answer={"base": [1, 2], "tests": [{"input": [1], "output": "é"}]}),
        made(6, answer=None, actions=1),
        made(7, answer=[1.5, None], completion="", actions=400),
    ]
    shards = Shards(directory)
    shards.append(several(0, 5))
    shards.append(further)
    shards.append([])
    for one, other in zip(shards.read(), several(0, 5) + further, strict=True):
        assert same(one, other)
    shards.close()
    assert [same(*pair) for pair in zip(Shards(directory).read(), several(0, 5) + further, strict=True)] == [True] * 8


def test_only_what_is_picked_is_read(directory):
    filled(directory, 3, 2)
    wanted = ["w-0-0-1", "w-0-0-4"]
    assert uids(Shards(directory).read(lambda uid: uid in wanted)) == wanted


def test_a_trajectory_does_not_keep_its_shard_in_memory(directory):
    filled(directory, 3)
    first = next(Shards(directory).read())
    assert first.input_ids.base is None
    assert first.behaviour_logp.base is None


def test_the_index_tells_what_each_shard_is(directory):
    whole = filled(directory, 3, 2)
    lines = [json.loads(line) for line in (directory / "INDEX").read_text().splitlines()]
    assert [(x["name"], x["rows"], x["first"], x["last"]) for x in lines] == [
        ("experience-000000.parquet", 3, whole[0].uid, whole[2].uid),
        ("experience-000001.parquet", 2, whole[3].uid, whole[4].uid),
    ]
    assert [x["bytes"] for x in lines] == [(directory / x["name"]).stat().st_size for x in lines]
    assert sorted(p.name for p in directory.iterdir() if p.name[0] != ".") == ["INDEX", *(x["name"] for x in lines)]


def test_messages_with_more_than_role_and_content_come_back_or_are_refused(directory):
    shards = Shards(directory)
    named = made(0, messages=[{"role": "user", "content": "a", "name": "Ann"}, {"role": "user", "content": "b"}])
    shards.append([named, made(1)])
    assert [same(*pair) for pair in zip(shards.read(), [named, made(1)], strict=True)] == [True, True]
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g", "arguments": {"y": 1}}}]
    called = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in calls]
    called = made(2, messages=called)
    shards.append([called])
    assert same([*shards.read()][-1], called)
    noted = [{"role": "user", "content": "a", "note": note} for note in ({"x": 1}, {"y": 1})]
    with pytest.raises(InputError, match="note beside role and content"):
        shards.append([made(3, messages=noted)])
    assert uids(shards.read()) == ["w-0-0-0", "w-0-0-1", "w-0-0-2"]


def test_it_is_a_data_set_as_it_is(directory):
    questions = [made(n, each=2, answer={"sum": [n]}) for n in range(4)]
    shards = Shards(directory)
    shards.append(questions[:2])
    shards.append(questions[2:])
    examples = list(Jsonl(path=str(directory), val_path=None, pair_rewards=None).load("train"))
    for example, t in zip(examples, questions, strict=True):
        assert (example.messages, example.rewards, example.answer) == (t.messages, [t.reward], t.answer)
        assert example.completions == [[{"role": "assistant", "content": t.completion}]]
        assert (example.prompt_id, example.columns["uid"]) == (t.prompt_id, t.uid)


def test_a_run_takes_it_by_its_path(directory, capsys, workplace):
    Shards(directory).append(several(0, 16, each=2, ended=True))
    (directory / "experience-000002.parquet.unfinished").write_bytes(b"torn")
    (directory / ".experience-000002.parquet.partial").write_bytes(b"torn")
    words = ["data=jsonl", f"data.path={directory}", "data.val_fraction=0", "data.distinct=false", "logger=none"]
    assert main(["train", *words, "algo=copg", "trainer.batch_size=4", "dry_run=true"]) == 0
    assert "16 trajectories" in capsys.readouterr().out


def test_what_killed_writers_left_is_removed(directory):
    whole = uids(filled(directory, 2))
    before = sorted(path.name for path in directory.iterdir())
    for name in ("experience-000001.parquet", "INDEX", "LEASES"):
        (directory / f".{name}.partial").write_bytes(b"torn")
        (directory / f".{name}.999999.tmp").write_bytes(b"torn")
    assert opened(directory) == whole
    assert sorted(path.name for path in directory.iterdir()) == before


def test_a_torn_line_of_the_index_is_as_if_its_shard_was_never_written(directory, tmp_path, caplog):
    whole = uids(filled(directory, 2, 2))
    text = (directory / "INDEX").read_bytes()
    first = text.index(b"\n") + 1
    for size in range(first, len(text)):
        copy = tmp_path / "copy"
        shutil.copytree(directory, copy)
        (copy / "INDEX").write_bytes(text[:size])
        caplog.clear()
        assert opened(copy) == whole[:2]
        assert "experience-000001.parquet: its writing was not finished, 2 rows dropped" in caplog.text
        assert (copy / "experience-000001.parquet.unfinished").exists()
        if size == len(text) - 1:
            shards = Shards(copy)
            shards.append(several(8, 9))
            shards.close()
            assert opened(copy) == [*whole[:2], "w-0-0-8"]
        shutil.rmtree(copy)


def test_shards_without_an_index_are_not_set_aside(directory):
    filled(directory, 2, 2, 2)
    (directory / "INDEX").write_bytes(b"")
    with pytest.raises(InputError, match=r"INDEX does not name 3 shards, first experience-000000"):
        Shards(directory)
    assert len(list(directory.glob("*.parquet"))) == 3


def damages(content):
    """A file cut and changed at many bytes: all near its ends, every 97th between."""
    size = len(content)
    for at in sorted({*range(9), *range(0, size, 97), *range(size - 9, size)}):
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_damaged_last_shard_is_set_aside_with_its_line(directory, caplog):
    whole = uids(filled(directory, 2, 3))
    last, index = directory / "experience-000001.parquet", (directory / "INDEX").read_bytes()
    for content in damages(last.read_bytes()):
        last.write_bytes(content)
        (directory / "INDEX").write_bytes(index)
        caplog.clear()
        assert opened(directory) == whole[:2]
        assert "experience-000001.parquet: damaged" in caplog.text
        assert "3 rows dropped" in caplog.text
        assert last.with_name(last.name + ".damaged").read_bytes() == content
        assert opened(directory) == whole[:2]
    shards = Shards(directory)
    shards.append(several(9, 10))
    shards.close()
    assert (directory / "INDEX").read_bytes().count(b"\n") == 2
    assert opened(directory) == [*whole[:2], "w-0-0-9"]


def test_a_last_shard_that_is_gone_is_dropped(directory, caplog):
    whole = uids(filled(directory, 2, 3))
    (directory / "experience-000001.parquet").unlink()
    assert opened(directory) == whole[:2]
    assert "3 rows dropped" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_earlier_shard_is_named_and_nothing_is_touched(directory, damage):
    filled(directory, 2, 3, 1)
    path, index = directory / "experience-000001.parquet", (directory / "INDEX").read_bytes()
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "cut" else content[:200] + b"?" + content[201:])
    if damage == "gone":
        path.unlink()
    for _ in range(2):  # the lock is free again after an error
        with pytest.raises(InputError, match=r"experience-000001\.parquet: damaged .* restore it .* 3 trajectories"):
            Shards(directory)
    assert (directory / "INDEX").read_bytes() == index


def test_a_broken_line_amid_the_index_is_named(directory):
    filled(directory, 1, 1, 1)
    lines = (directory / "INDEX").read_bytes().splitlines(keepends=True)
    (directory / "INDEX").write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(InputError, match="INDEX:2: a broken line; restore it"):
        Shards(directory)


def test_a_write_that_fails_leaves_what_was_there(directory, monkeypatch):
    whole = uids(filled(directory, 2))
    shards = Shards(directory)
    sync = os.fsync
    for calls in range(1, 4):  # of the shard, of the directory, of INDEX
        left = iter(range(calls - 1))

        def failing(number, left=left):
            if next(left, None) is None:
                monkeypatch.setattr(os, "fsync", sync)
                raise OSError(28, "No space left on device")
            sync(number)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="No space left"):
            shards.append(several(5, 7))
        assert sorted(p.name for p in directory.iterdir() if p.name[0] != ".") == ["INDEX", "experience-000000.parquet"]
        assert uids(shards.read()) == whole
    shards.append(several(7, 8))
    shards.close()
    assert opened(directory) == [*whole, "w-0-0-7"]


def test_another_writer_is_refused(directory):
    shards = Shards(directory)
    with pytest.raises(InputError, match=r"experience: another process writes here"):
        Shards(directory)
    shards.close()
    Shards(directory).close()


def test_a_writer_in_another_process_is_refused_until_it_dies(directory):
    child, reader = forked(hold, directory)
    assert os.read(reader.fileno(), 5) == b"held\n"
    with pytest.raises(InputError, match=r"experience: another process writes here"):
        Shards(directory)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    Shards(directory).close()


@needs_proc
def test_a_power_cut_between_any_two_writes_loses_nothing_accepted(directory, tmp_path, monkeypatch):
    disk, shards, accepted = Disk(directory, monkeypatch), Shards(directory), []
    for n in range(3):
        before, seen = [*accepted], len(disk.states)
        shards.append(several(2 * n, 2 * n + 2))
        accepted += uids(several(2 * n, 2 * n + 2))
        states = disk.states[seen:]
        assert len(states) > 2
        for state in states:
            assert opened(restored(tmp_path / "after", state)) in (before, accepted)
        assert opened(restored(tmp_path / "after", states[-1])) == accepted
