"""Corruptions make partly wrong dialogues for training: reference answers with seeded mistakes in some turns."""

import ast
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from shiqrun.environments.bfcl.rendering import DONE, message_of

Kind = Literal["wrong_argument", "dropped", "repeated", "reordered", "extra", "malformed"]
KINDS: tuple[Kind, ...] = ("wrong_argument", "dropped", "repeated", "reordered", "extra", "malformed")
Together = Literal["one", "turn"]


def turn_messages(calls: Sequence[str], together: Together) -> list[str]:
    """Return the policy's messages of a turn: its calls, one a message or all in one, then the message that ends it."""
    if not calls:
        return [DONE]
    return [*([message_of([call]) for call in calls] if together == "one" else [message_of(calls)]), DONE]


def corrupt_turn(
    calls: Sequence[str], others: Sequence[str], together: Together, rng: np.random.Generator
) -> tuple[list[str], Kind | None]:
    """Return the messages of a turn with one mistake, and its kind; the turn as it is if it has no call.

    A mistake need not cost the reward: a repeated read is harmless. The checker decides.

    Args:
        calls: of the reference answer.
        others: calls of the sample's other turns, from which an extra call is taken.
        together: whether messages hold one call or all of the turn, see `turn_messages`.
        rng: decides which mistake and where.
    """
    possible = [kind for kind in KINDS if _possible(kind, calls, others)]
    if not possible:
        return turn_messages(calls, together), None
    kind = possible[rng.integers(len(possible))]
    at = int(rng.integers(len(calls)))
    made = list(calls)
    match kind:
        case "wrong_argument":
            at = int(rng.choice([i for i, call in enumerate(calls) if _arguments(call)]))
            made[at] = _with_wrong_argument(calls[at], [*calls, *others], rng)
        case "dropped":
            del made[at]
        case "repeated":
            made.insert(at, made[at])
        case "reordered":
            places = _differing(calls)
            at = places[int(rng.integers(len(places)))]
            made[at], made[at + 1] = made[at + 1], made[at]
        case "extra":
            made.insert(int(rng.integers(len(calls) + 1)), others[int(rng.integers(len(others)))])
        case "malformed":
            messages = turn_messages(calls, together)[:-1]
            at = int(rng.integers(len(messages)))
            # The text parses to no call, so the turn ends there.
            return [*messages[:at], messages[at].rstrip(")]")], kind
    return turn_messages(made, together), kind


def _possible(kind: Kind, calls: Sequence[str], others: Sequence[str]) -> bool:
    if kind == "wrong_argument":
        return any(_arguments(call) for call in calls)
    if kind == "reordered":
        return len(_differing(calls)) > 0
    return len(calls) > 0 and (kind != "extra" or len(others) > 0)


def _differing(calls: Sequence[str]) -> list[int]:
    """Return the places in a turn at which a call and the next one differ."""
    return [n for n in range(len(calls) - 1) if calls[n] != calls[n + 1]]


def _arguments(call: str) -> list[ast.expr]:
    """Return the arguments of a function call that are plain literals."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    return [value for value in [*node.args, *(k.value for k in node.keywords)] if isinstance(value, ast.Constant)]


def _with_wrong_argument(call: str, pool: Sequence[str], rng: np.random.Generator) -> str:
    """Return a call with another value for one argument, if possible a value of that type from the dialogue."""
    tree = ast.parse(call, mode="eval")
    assert isinstance(tree.body, ast.Call)
    nodes = [*tree.body.args, *(k.value for k in tree.body.keywords)]
    plain = [node for node in nodes if isinstance(node, ast.Constant)]
    node = plain[int(rng.integers(len(plain)))]
    values = [a.value for other in pool for a in _arguments(other) if isinstance(a, ast.Constant)]
    same = [v for v in values if type(v) is type(node.value) and v != node.value]
    node.value = same[int(rng.integers(len(same)))] if same else _alter(node.value)
    return ast.unparse(tree)


def _alter(value: Any) -> Any:
    """Return another value of an argument, of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}_2"
