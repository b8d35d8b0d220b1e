"""A run directory has one writer: a second process is refused, and a killed one leaves no lock."""

import os
import signal
import time
from pathlib import Path

import pytest

from shiqrun.cli import main
from shiqrun.config.run_lock import lock_run
from shiqrun.errors import InputError
from tests.support.command_line import SMALL, largest_difference, metrics, start, train, wait_for_rows

pytestmark = pytest.mark.usefixtures("at_home")


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 2
    return " ".join(capsys.readouterr().err.split())


def wait_for(file: Path) -> None:
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, f"no {file}"
        time.sleep(0.02)


def test_of_two_processes_on_one_run_directory_the_second_is_refused(home, capsys):
    place, steps = f"run_dir={home}/twice", ("trainer.max_steps=60", "trainer.checkpoint_every=5")
    first = start(place, *steps)
    wait_for_rows(home / "twice", 5, first)
    os.kill(first.pid, signal.SIGSTOP)  # so that it is still there, however slow the second one is
    for again in (["train", *SMALL, place, *steps], ["train", f"resume={home}/twice"]):
        said = refused(capsys, *again)
        assert f"process {first.pid} on " in said
        assert "is writing into it" in said
        assert "Traceback" not in said
    first.kill()
    first.wait()
    assert main(["train", f"resume={home}/twice"]) == 0  # the killed process holds nothing
    assert train(f"run_dir={home}/once", *steps) == 0
    assert largest_difference(home / "twice", home / "once") == 0
    assert [row["step"] for row in metrics(home / "twice")] == [row["step"] for row in metrics(home / "once")]
    assert not (home / "twice" / ".run.lock").exists()


def test_what_killed_writers_of_a_run_left_goes_and_the_page_that_a_report_is_writing_stays(tmp_path):
    page = tmp_path / ".report.html.999.tmp"
    for file in (tmp_path / ".summary.json.999.tmp", page):
        file.touch()
    with lock_run(tmp_path):
        assert [*tmp_path.glob("*.tmp")] == [page]


def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    with lock_run(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        with lock_run(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_process_may_ask_for_its_lock_again(tmp_path):
    with lock_run(tmp_path), lock_run(tmp_path):
        assert (tmp_path / ".run.lock").exists()
    assert not (tmp_path / ".run.lock").exists()


def test_the_message_says_what_to_do(tmp_path):
    holder = start_holding(tmp_path)
    try:
        with pytest.raises(InputError, match=rf"process {holder} on .* since .*resume={tmp_path}, or give another"):
            lock_run(tmp_path).__enter__()
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    with lock_run(tmp_path):
        pass


def start_holding(folder: Path) -> int:
    """Process id of a child that holds the lock of a folder until it is killed."""
    child = os.fork()
    if not child:
        with lock_run(folder):
            (folder / "held").touch()
            time.sleep(60)
        os._exit(0)
    wait_for(folder / "held")
    return child
