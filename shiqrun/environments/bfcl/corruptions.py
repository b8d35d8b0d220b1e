"""Dialogues that are partly wrong: reference answers with a mistake in some turns, made from a seed."""

import ast
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from shiqrun.environments.bfcl.shown import DONE, message_of

Kind = Literal["wrong_argument", "dropped", "repeated", "reordered", "extra", "malformed"]
KINDS: tuple[Kind, ...] = ("wrong_argument", "dropped", "repeated", "reordered", "extra", "malformed")
Together = Literal["one", "turn"]


def said(calls: Sequence[str], together: Together) -> list[str]:
    """The messages of a turn that makes these calls, one a message or all in one, and then ends."""
    if not calls:
        return [DONE]
    return [*([message_of([call]) for call in calls] if together == "one" else [message_of(calls)]), DONE]


def corrupted(
    calls: Sequence[str], others: Sequence[str], together: Together, rng: np.random.Generator
) -> tuple[list[str], Kind | None]:
    """The messages of a turn with one mistake, and which; the turn as it is where it has no call.

    Args:
        calls: of the reference answer.
        others: calls of the sample's other turns, of which an extra one is taken.
        together: see `said`.
        rng: decides which mistake and where.

    A mistake need not cost the reward: a repeated read is harmless. The checker decides.
    """
    possible = [kind for kind in KINDS if _possible(kind, calls, others)]
    if not possible:
        return said(calls, together), None
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
            messages = said(calls, together)[:-1]
            at = int(rng.integers(len(messages)))
            # It parses to nothing, so the turn ends there.
            return [*messages[:at], messages[at].rstrip(")]")], kind
    return said(made, together), kind


def _possible(kind: Kind, calls: Sequence[str], others: Sequence[str]) -> bool:
    if kind == "wrong_argument":
        return any(_arguments(call) for call in calls)
    if kind == "reordered":
        return len(_differing(calls)) > 0
    return len(calls) > 0 and (kind != "extra" or len(others) > 0)


def _differing(calls: Sequence[str]) -> list[int]:
    """Where a call and the next one differ."""
    return [n for n in range(len(calls) - 1) if calls[n] != calls[n + 1]]


def _arguments(call: str) -> list[ast.expr]:
    """The arguments of a call that are plain literals."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    return [value for value in [*node.args, *(k.value for k in node.keywords)] if isinstance(value, ast.Constant)]


def _with_wrong_argument(call: str, pool: Sequence[str], rng: np.random.Generator) -> str:
    """The call with another value for one of its arguments: of the dialogue's where one of that type is there."""
    tree = ast.parse(call, mode="eval")
    assert isinstance(tree.body, ast.Call)
    nodes = [*tree.body.args, *(k.value for k in tree.body.keywords)]
    plain = [node for node in nodes if isinstance(node, ast.Constant)]
    node = plain[int(rng.integers(len(plain)))]
    values = [a.value for other in pool for a in _arguments(other) if isinstance(a, ast.Constant)]
    same = [v for v in values if type(v) is type(node.value) and v != node.value]
    node.value = same[int(rng.integers(len(same)))] if same else _altered(node.value)
    return ast.unparse(tree)


def _altered(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}_2"
