"""`few_collections` makes the collector of cyclic garbage run seldom while many objects without cycles are made."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS = 100_000
"""New objects after which the collector looks at them; with Python's default of 700 it takes a seventh of encoding."""


@contextmanager
def few_collections() -> Iterator[None]:
    """Let the collector run once in `OBJECTS` new objects inside the block, and as before behind it."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], OBJECTS) if before[0] else 0, *before[1:])  # 0: it is off, and stays off
    try:
        yield
    finally:
        gc.set_threshold(*before)
