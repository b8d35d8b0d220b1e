import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from shiqrun.util.lock import Lock, LockHeld, wait_for_lock

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from shiqrun.util.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
heir = sys.argv[2:] and subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()], stdout=subprocess.DEVNULL)
print(heir.pid if heir else 0, flush=True)
time.sleep(60)
"""


def held(path, *words):
    """A process that holds the lock, and the id of its child that has inherited it."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), *words], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    path = tmp_path / "lock"
    process, _ = held(path)
    assert json.loads(path.read_text())["pid"] == process.pid
    with pytest.raises(LockHeld, match=rf"process {process.pid} on \S+ since 20.*lock"):
        Lock(path).acquire()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_child_that_has_inherited_a_lock_holds_it_after_its_parents_death(tmp_path):
    process, heir = held(tmp_path / "lock", "with a child")
    process.kill()
    process.wait()
    with pytest.raises(LockHeld):
        Lock(tmp_path / "lock").acquire()
    os.kill(heir, signal.SIGKILL)
    Lock(tmp_path / "lock").acquire(timeout=30)


def test_a_lock_excludes_others_of_the_same_process_until_it_is_released(tmp_path):
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.acquire()
    began = time.monotonic()
    with pytest.raises(LockHeld, match=f"process {os.getpid()} "):
        second.acquire(timeout=0.2)
    assert time.monotonic() - began >= 0.2
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_who_waits_says_for_whom_and_then_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("shiqrun.util.lock.PATIENCE_SECONDS", 0.01)
    first, entered = Lock(tmp_path / "lock"), threading.Event()
    first.acquire()

    def wait():
        with wait_for_lock(tmp_path / "lock", "another job computes"):
            entered.set()

    with caplog.at_level(logging.INFO, "shiqrun"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        end = time.monotonic() + 30
        while "another job computes" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
        assert not entered.is_set()
        first.release()
        waiter.join(30)
    assert entered.is_set()
    assert f"another job computes (process {os.getpid()} on " in caplog.text


def test_a_full_disk_takes_the_holders_name_and_not_the_lock(tmp_path, monkeypatch):
    def refuse(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with Lock(tmp_path / "lock"), pytest.raises(LockHeld, match="another process holds"):
        Lock(tmp_path / "lock").acquire()
    with Lock(tmp_path / "lock"):
        pass


def test_a_holder_that_has_not_written_its_name_is_another_process(tmp_path):
    with Lock(tmp_path / "lock"):
        (tmp_path / "lock").write_text("")
        with pytest.raises(LockHeld, match="another process holds"):
            Lock(tmp_path / "lock").acquire()
