"""What a loss asks of its data, said where the loss is defined and checked before training begins."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

Need = Literal["rewards"]
Loss = TypeVar("Loss", bound=Callable[..., Any])


def needs(*what: Need) -> Callable[[Loss], Loss]:
    """Marks a loss with what it needs besides tokens: "rewards"."""

    def mark(loss: Loss) -> Loss:
        loss.needs = frozenset(what)  # type: ignore[attr-defined]
        return loss

    return mark


def needs_of(loss: Callable[..., Any]) -> frozenset[str]:
    """What the loss, or the loss inside a partial, was marked with; an unmarked loss needs rewards."""
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "needs", frozenset({"rewards"}))
