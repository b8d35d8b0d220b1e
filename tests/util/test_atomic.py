import errno
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

from shiqrun.util.atomic import (
    atomic_directory,
    atomic_path,
    atomic_writer,
    remove_dead_partials,
    remove_partials,
    write_atomic,
)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_as_it_was_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with atomic_writer(path) as file:
        file.write("new\r\nä")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == "new\r\nä".encode()
    assert names(tmp_path) == ["table.csv"]


def test_an_error_on_the_way_changes_nothing_and_leaves_nothing(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_writer(path) as file:
        file.writelines(["half", 2])
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("content", ["{}\né\n", b"{}\n\xff"])
def test_a_content_is_written_at_once(tmp_path, content):
    write_atomic(tmp_path / "summary.json", content)
    assert (tmp_path / "summary.json").read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(tmp_path) == ["summary.json"]


def test_content_and_name_are_forced_to_the_disk_in_that_order(tmp_path, monkeypatch):
    sync, path, synced = os.fsync, tmp_path / "a", []

    def watched(number):
        synced.append((os.path.samestat(os.fstat(number), tmp_path.stat()), path.exists()))
        sync(number)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(path, "whole")
    assert synced == [(False, False), (True, True)]  # the file under its hidden name, then the directory


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("refused", [stat.S_ISDIR, stat.S_ISREG])
def test_a_file_system_may_refuse_to_force_a_directory_and_nothing_else(tmp_path, monkeypatch, code, refused):
    def fsync(number):
        if refused(os.fstat(number).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    if refused is stat.S_ISDIR and code != errno.EIO:
        write_atomic(tmp_path / "a", "whole")
        with atomic_directory(tmp_path / "b") as folder:
            (folder / "c").touch()
        assert names(tmp_path) == ["a", "b"]
    else:
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            write_atomic(tmp_path / "a", "whole")


def test_a_directory_takes_the_place_of_a_former_one(tmp_path):
    path = tmp_path / "policy"
    for size in (3, 1):
        with atomic_directory(path) as folder:
            (folder / "deep").mkdir()
            for n in range(size):
                (folder / "deep" / str(n)).write_text("new")
            assert folder != path
    assert names(path / "deep") == ["0"]
    assert names(tmp_path) == ["policy"]


def test_an_error_leaves_the_former_directory(tmp_path):
    path = tmp_path / "policy"
    path.mkdir()
    (path / "model").write_text("old")
    with pytest.raises(TypeError), atomic_directory(path) as folder:
        (folder / "model").write_text(2)
    assert (path / "model").read_text() == "old"
    assert names(tmp_path) == ["policy"]


def test_only_what_killed_writers_of_these_files_left_is_removed(tmp_path):
    for name in (".a.csv.12.tmp", ".b.csv.12.tmp", "a.csv", "a.csv.tmp", ".a.csv"):
        (tmp_path / name).touch()
    remove_partials(tmp_path, "a.csv")
    assert names(tmp_path) == [".a.csv", ".b.csv.12.tmp", "a.csv", "a.csv.tmp"]
    remove_partials(tmp_path)
    assert names(tmp_path) == [".a.csv", "a.csv", "a.csv.tmp"]


def test_what_a_killed_process_of_the_same_number_left_is_replaced(tmp_path):
    for mark in ("", ".old"):
        stale = tmp_path / f".policy.{os.getpid()}{mark}.tmp"
        stale.mkdir()
        (stale / "half").touch()
    with atomic_directory(tmp_path / "policy") as folder:
        (folder / "model").write_text("new")
    assert names(tmp_path) == ["policy"]
    assert names(tmp_path / "policy") == ["model"]


@pytest.mark.parametrize("mark", ["", ".old"])
def test_directories_that_killed_writers_left_are_removed(tmp_path, mark):
    (tmp_path / "policy").mkdir()
    stale = tmp_path / f".policy.999999{mark}.tmp"
    stale.mkdir()
    (stale / "half").touch()
    remove_partials(tmp_path, "policy")
    assert names(tmp_path) == ["policy"]


WRITER = """
import itertools, sys, time
from pathlib import Path
from shiqrun.util.atomic import atomic_directory, atomic_path
folder = Path(sys.argv[1])
for number in itertools.count(1):
    with atomic_path(folder / "file") as partial, partial.open("w") as file:
        for _ in range(100):  # takes about as long as the directory, so that kills come at either
            file.write(f"{number}\\n" * 50)
            file.flush()
            time.sleep(0.001)
    with atomic_directory(folder / "directory") as place:
        for n in range(20):
            (place / str(n)).write_text(str(number))
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_writer_killed_at_any_moment_leaves_one_whole_content(tmp_path, seed):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    writer.stdout.readline()  # the first contents are whole
    time.sleep(random.Random(seed).random() * 0.4)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    done = [1, *(int(line) for line in writer.stdout.read().splitlines() if line)][-1]
    lines = (tmp_path / "file").read_text().splitlines()
    assert len(lines) == 100 * 50
    assert len(set(lines)) == 1
    assert int(lines[0]) in (done, done + 1)
    if (tmp_path / "directory").exists():  # or it was killed between the two renames
        found = [path.read_text() for path in (tmp_path / "directory").iterdir()]
        assert len(found) == 20
        assert len(set(found)) == 1
        assert int(found[0]) in (done, done + 1)
    assert {name for name in names(tmp_path) if name[0] != "."} <= {"file", "directory"}


def test_a_kill_before_the_rename_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    child = os.fork()
    if child == 0:
        with atomic_path(path) as partial:
            partial.write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    remove_partials(tmp_path, "file")
    assert names(tmp_path) == ["file"]


def test_partials_of_dead_writers_alone_are_removed(tmp_path):
    with subprocess.Popen(["true"]) as gone:
        pass
    dead = [f".a.csv.{gone.pid}.tmp", f".policy.{gone.pid}.old.tmp", f".b.json.{os.getpid()}.tmp"]
    kept = [f".a.csv.{os.getppid()}.tmp", "a.csv", f"a.{gone.pid}.tmp", ".notes.tmp"]
    for name in dead + kept:
        (tmp_path / name).write_text("x")
    remove_dead_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
