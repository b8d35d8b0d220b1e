"""`rest_slow` keeps one value of a parametrized test in the default selection and marks the others slow."""

from collections.abc import Iterable
from typing import Any

import pytest


def rest_slow(values: Iterable[Any], quick: int = 1) -> list[Any]:
    """Return the values of a parametrized test, of which only the first `quick` ones run without `make test-all`."""
    return [pytest.param(v, marks=[pytest.mark.slow] if i >= quick else []) for i, v in enumerate(values)]
