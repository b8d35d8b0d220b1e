"""What a loss asks of its data and its policy, said where the loss is defined and checked before training begins."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

Need = Literal["rewards", "pairs", "order", "group", "value", "score", "prompt_value", "behaviour", "proximal"]
"""rewards; completions of one prompt compared in pairs, with one of them better, or with their mean; policy.value at
each action's state, or the score behind each action; Q0 of each prompt; log-probabilities of the actions under the
distribution that was sampled from; the policy's scores when the batch came, where it is trained on more than once."""
Loss = TypeVar("Loss", bound=Callable[..., Any])


def needs(*what: Need, group_if: Mapping[str, Any] | None = None) -> Callable[[Loss], Loss]:
    """Marks a loss with what it needs besides tokens, and with the hyperparameters that make it compare a group."""

    def mark(loss: Loss) -> Loss:
        loss.needs = frozenset(what)  # type: ignore[attr-defined]
        loss.group_if = dict(group_if or {})  # type: ignore[attr-defined]
        return loss

    return mark


def needs_of(loss: Callable[..., Any]) -> frozenset[str]:
    """What the loss, or the loss inside a partial, was marked with; an unmarked loss needs rewards."""
    given: dict[str, Any] = {}
    while isinstance(loss, partial):
        given = loss.keywords | given
        loss = loss.func
    wanted = getattr(loss, "needs", frozenset({"rewards"}))
    compares = any(given.get(key) == value for key, value in getattr(loss, "group_if", {}).items())
    return wanted | {"group"} if compares else wanted


def compares_completions(loss: Callable[..., Any]) -> bool:
    """Whether completions of one prompt must stay together in a micro-batch."""
    return bool(needs_of(loss) & {"pairs", "group"})
