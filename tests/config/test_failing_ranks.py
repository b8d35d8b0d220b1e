"""Whatever ends one rank while the run is prepared ends all of them, with one line and no orphans."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.command_line import SMALL, finished, started_anew

TROUBLE = '''
"""Treasure maps, with a rank that has trouble while the data are read: all ranks are there by then."""

import os
import time

from shiqrun.data.treasure import Treasure
from shiqrun.errors import InputError
from shiqrun.util import ranks


class Trouble(Treasure):
    def load(self, split):
        open(f"pid{ranks.rank()}", "w").write(str(os.getpid()))
        ranks.barrier()
        if ranks.rank() == 1 and (what := os.environ["TROUBLE"]) != "waits":
            {"input": self.input, "defect": self.defect, "killed": lambda: os.kill(os.getpid(), 9)}[what]()
        if ranks.rank() == 0 and os.environ["TROUBLE"] == "waits":
            time.sleep(60)
        ranks.gather_objects(f"rank {ranks.rank()} of {ranks.world()}")
        return super().load(split)

    def input(self):
        raise InputError("rows.jsonl: row 3: something is missing on this node; copy it")

    def defect(self):
        raise ValueError("a defect of one rank")
'''


@pytest.fixture(autouse=True)
def trouble(at_home, monkeypatch):
    (at_home / "trouble.py").write_text(TROUBLE)
    (at_home / "conf/data").mkdir(parents=True, exist_ok=True)
    (at_home / "conf/data/trouble.yaml").write_text("defaults: [treasure]\n_target_: trouble.Trouble\n")
    monkeypatch.setenv("PYTHONPATH", str(at_home))


def begun(home, what: str) -> subprocess.Popen:
    for file in home.glob("pid*"):
        file.unlink()
    ranks = ("hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu")
    return started_anew("train", *SMALL, "data=trouble", *ranks, f"run_dir={what}", TROUBLE=what)


def expect_no_orphans(home):
    end = time.monotonic() + 20
    pids = [int((home / f"pid{rank}").read_text()) for rank in (0, 1)]
    while time.monotonic() < end and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("input", 2, "shiqrun: error: rows.jsonl: row 3: something is missing on this node; copy it"),
        pytest.param("killed", 1, "shiqrun: failed: rank 1 ended by SIGKILL; the memory", marks=pytest.mark.slow),
        pytest.param("defect", 1, "shiqrun: failed", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_one_rank_ends_all_with_its_line_and_code(home, what, code, said):
    ended, out = finished(begun(home, what), 120)
    lines = [line for line in out.splitlines() if line.startswith("shiqrun:")]
    assert (ended, len(lines)) == (code, 1), out
    assert lines[0].startswith(said)
    assert out.count("Traceback") == (what == "defect")
    assert ("ValueError: a defect of one rank" in out) == (what == "defect")
    expect_no_orphans(home)
    assert (home / what).exists() == (code == 1), "wrong input leaves no run behind"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the ranks of a parent that is killed")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_first_rank_that_is_ended_takes_the_others_along(home, number):
    process = begun(home, "waits")
    end = time.monotonic() + 60
    while not all((home / f"pid{rank}").exists() and (home / f"pid{rank}").read_text() for rank in (0, 1)):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    code, out = finished(process, 60)
    assert code == (130 if number == signal.SIGINT else -number), out
    expect_no_orphans(home)
