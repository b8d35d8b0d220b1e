"""Shared fixtures; all tests run without network and telemetry, one thread a process (two workers, two cores)."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.places import working_in

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def has_room_for_tests(memory: Path, gigabytes: int = 4) -> bool:
    """Return whether a folder in memory takes the files of all tests, and runs the programs among them."""
    usable = memory.is_dir() and os.access(memory, os.W_OK) and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    return usable and shutil.disk_usage(memory).free > gigabytes << 30


if has_room_for_tests(Path("/dev/shm")):  # where no test waits for a disk: a run syncs some thirty files
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")


@pytest.fixture
def workplace(tmp_path):
    """The test's own empty folder, which is its working directory."""
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def home(tmp_path_factory, request):
    """A folder that the tests of a file share, for runs that several of them read."""
    return tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2].removeprefix("test_"))


@pytest.fixture
def at_home(home):
    """The shared folder of the file, which is the test's working directory."""
    with working_in(home):
        yield home
