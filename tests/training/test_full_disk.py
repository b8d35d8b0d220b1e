"""A run on a disk that is full ends with one line, keeps what it has saved, and leaves no partial file."""

import subprocess
import sys

import pytest

from shiqrun.util.full_disk import full_disk
from tests.support.command_line import SMALL

SIZES = (8, 20, 24, 700)
"""KiB: too few for Hydra's files, for the log, for the metrics, and for a second checkpoint."""
PROGRAM = """
import subprocess, sys
from pathlib import Path
from shiqrun.cli import main
disk, words = Path(sys.argv[1]), sys.argv[3:]
for size in sys.argv[2].split(","):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)], check=True)
    code = main(["train", *words, f"run_dir={disk}/run"])
    files = [str(p.relative_to(disk)) for p in disk.rglob("*") if p.is_file()]
    print("size", size, "exit", code, "files", *sorted(files), file=sys.stderr, flush=True)
    subprocess.run(["umount", str(disk)], check=True)
"""


def may_mount(folder):
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_with_one_line_and_leaves_no_partial_file(tmp_path):
    if not may_mount(tmp_path):
        pytest.skip("no mount of a small file system without root here")
    words = [*SMALL, "trainer.max_steps=6", "trainer.checkpoint_every=3", "trainer.log_every=1"]
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), ",".join(map(str, SIZES)), *words]
    done = subprocess.run(["unshare", "-rm", *program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    ends = [line for line in done.stderr.splitlines() if line.startswith("size ")]
    assert [line.split(" files")[0] for line in ends] == [f"size {size} exit 1" for size in SIZES]
    assert done.stderr.count("cannot be written (No space left on device); ") == len(SIZES)
    assert ".tmp" not in " ".join(ends)
    assert "run/checkpoints/last.ckpt" in ends[-1]
    assert "run/metrics.csv" in ends[-1]


def test_an_error_of_the_disk_is_found_beneath_those_that_it_caused(tmp_path):
    caused = AssertionError()
    caused.__context__ = OSError(28, "No space left on device", str(tmp_path))
    assert f"{tmp_path}: cannot be written" in full_disk(caused)
    assert full_disk(FileNotFoundError(2, "No such file or directory"), tmp_path) is None
