"""A layout says how a model's body reads a batch: as padded rows, or as one packed row without padding or repeats.

Layouts are made together with batches, on the loader's side, so that no step waits for a device to count tokens.
`batching/packing.py` decides which token goes where.
"""

from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, device


class _Dataclass(Protocol):
    """A `_Dataclass` is an instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


D = TypeVar("D", bound=_Dataclass)


def to_device(values: D, where: "device | str") -> D:
    """Return a frozen dataclass whose tensors are on another device; from pinned memory, copy without waiting."""
    found = {f.name: getattr(values, f.name) for f in fields(values) if f.init}
    return replace(values, **{name: _to(x, where) for name, x in found.items() if hasattr(x, "to")})


def _to(x: Any, where: "device | str") -> Any:
    return x.to(where, non_blocking=x.is_pinned()) if isinstance(x, Tensor) else x.to(where)


@dataclass(frozen=True)
class Call:
    """A `Call` calls the attention kernel once on a packed batch: R branches of at most Q queries, each with K keys.

    A branch is a piece of a trajectory that attends to the same keys: for example one of the completions that share a
    prompt.

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
        """Return the kernel call with its mask on another device."""
        return self if self.mask is None else to_device(self, where)


@dataclass(frozen=True)
class Attention:
    """An `Attention` is the pattern of a packed row of L tokens: it says which token attends to which.

    Attributes:
        calls: calls of the attention kernel that together cover every token once.
        queries: `[sum R*Q]` int64, the token of each query, branches padded on the right with the first token; None
            where the queries are all tokens in order.
        keys: `[sum R*K]` int64, the token of each key; None where the keys are all tokens in order.
        outputs: `[L]` int64, the query of each token; None where the queries are all tokens in order.
        query_positions: `[sum R*Q]` int64, the position of each query in its trajectory.
        key_positions: `[sum R*K]` int64, the position of each key in its trajectory.
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
        """Return the attention pattern on another device."""
        return to_device(replace(self, calls=tuple(call.to(where) for call in self.calls)), where)


@dataclass(frozen=True)
class Layout:
    """A layout holds the tokens that a model's body reads, and where its output has the N actions of the batch.

    Attributes:
        input_ids: `[R, L]` int64; R is 1 when packed.
        attention_mask: `[R, L]` bool, True on tokens; None when packed.
        positions: `[R, L]` int64, of each token in its trajectory; None when padded.
        state: `[N]` int64, index into R*L of the token whose output predicts each action.
        taken: `[N]` int64, index into R*L of the action's own token.
        slot: `[N]` int64, index into B*A of the action in the batch.
        attention: the attention pattern when packed; None when padded.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    positions: Tensor | None
    state: Tensor
    taken: Tensor
    slot: Tensor
    attention: Attention | None = None

    def to(self, where: "device | str") -> "Layout":
        """Return the layout on another device."""
        return to_device(self, where)
