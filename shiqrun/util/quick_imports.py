"""Lightning can be imported without matplotlib, which torchmetrics loads to offer pictures that nothing here draws."""

from collections.abc import Iterator
from contextlib import contextmanager

SKIPPED = frozenset({"matplotlib", "scienceplots"})
"""What torchmetrics imports with itself where it is installed, and only to draw."""


@contextmanager
def without_pictures() -> Iterator[None]:
    """Let torchmetrics take the packages of `SKIPPED` for missing inside the block; an `import` of them works."""
    from lightning_utilities.core.imports import RequirementCache

    ask = getattr(RequirementCache, "_check_available", None)
    if ask is None:  # another version asks elsewhere: nothing is lost but time
        yield
        return

    def answer(self: RequirementCache) -> None:
        if self.requirement in SKIPPED:
            self.available, self.message = False, f"{self.requirement} is left out to start sooner"
        else:
            ask(self)

    RequirementCache._check_available = answer  # type: ignore[method-assign]
    try:
        yield
    finally:
        RequirementCache._check_available = ask  # type: ignore[method-assign]
