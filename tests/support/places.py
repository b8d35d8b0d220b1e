"""Working directories of tests, each with a cache of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def working_in(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Make a folder the working directory with shiqrun's cache in it, until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SHIQRUN_CACHE", str(folder / "cache"))
        yield patch
