"""Fixtures of the experience store."""

import pytest

from shiqrun.rollout.store.queue import Buffer


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "experience"


@pytest.fixture
def opened(directory):
    """Opens the buffer, after whatever had it open before was closed."""
    buffers = []

    def make(where=directory, **options):
        if buffers:
            buffers.pop().close()
        buffers.append(Buffer(where, **options))
        return buffers[-1]

    yield make
    buffers.pop().close()
