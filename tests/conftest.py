"""Shared fixtures; all tests run without network and telemetry, one thread a process (two workers, two cores)."""

import os

import pytest

from tests.support.places import working_in

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


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
