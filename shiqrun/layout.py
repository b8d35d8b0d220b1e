"""How a batch lies before the body of a model: padded rows, or one row in which nothing is padded or repeated.

Made where batches are made, so that no step waits for a device to count; `batching/packing.py` decides what goes where.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, device


def moved(values: Any, where: "device | str") -> Any:
    """A frozen dataclass with everything in it that has a `.to` on another device; pinned memory without waiting."""
    found = {f.name: getattr(values, f.name) for f in fields(values) if f.init}
    return replace(values, **{name: _to(x, where) for name, x in found.items() if hasattr(x, "to")})


def _to(x: Any, where: "device | str") -> Any:
    return x.to(where, non_blocking=x.is_pinned()) if isinstance(x, Tensor) else x.to(where)


@dataclass(frozen=True)
class Call:
    """One call of the attention kernel: R branches of at most Q tokens, each with its own K keys.

    Attributes:
        branches: R.
        queries: Q.
        keys: K.
        mask: `[R, 1, Q, K]` bool, True where a query sees a key; None for plain causal attention.
    """

    branches: int
    queries: int
    keys: int
    mask: Tensor | None

    def to(self, where: "device | str") -> "Call":
        """The same on another device."""
        return self if self.mask is None else moved(self, where)


@dataclass(frozen=True)
class Attention:
    """Which of the L packed tokens attends to which.

    Attributes:
        calls: one after another they cover every token once.
        queries: `[sum R*Q]` int64, the token of each query, branches padded on the right with the first token; None
            where that is all tokens in order.
        keys: `[sum R*K]` int64, the token of each key; None likewise.
        outputs: `[L]` int64, the query of each token; None likewise.
        query_positions: `[sum R*Q]` int64, of each query in its trajectory.
        key_positions: `[sum R*K]` int64.
        longest: tokens of the longest trajectory.
    """

    calls: tuple[Call, ...]
    queries: Tensor | None
    keys: Tensor | None
    outputs: Tensor | None
    query_positions: Tensor
    key_positions: Tensor
    longest: int

    def to(self, where: "device | str") -> "Attention":
        """The same on another device."""
        return moved(replace(self, calls=tuple(call.to(where) for call in self.calls)), where)


@dataclass(frozen=True)
class Layout:
    """What the body reads, and where in its output the N actions of the batch are found.

    Attributes:
        input_ids: `[R, L]` int64; R is 1 when packed.
        attention_mask: `[R, L]` bool, True on tokens; None when packed.
        positions: `[R, L]` int64, of each token in its trajectory; None when padded.
        state: `[N]` int64, the token that predicts each action, of R*L.
        taken: `[N]` int64, the action's own token, of R*L.
        slot: `[N]` int64, the action's place, of B*A.
        attention: who attends to whom; None when padded.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    positions: Tensor | None
    state: Tensor
    taken: Tensor
    slot: Tensor
    attention: Attention | None = None

    def to(self, where: "device | str") -> "Layout":
        """The same on another device."""
        return moved(self, where)
