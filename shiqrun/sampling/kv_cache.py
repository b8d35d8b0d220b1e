"""Keys and values of rows that are read on token by token, in memory taken once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from shiqrun.models.attention import PACKED

SPANNED = "shiqrun_spanned"
SLACK = 16
"""Columns of padding that are rather read than left out by one more call."""

Spans = list[tuple[int, int, int]]
"""(first row, row after the last, column from which the keys of one of them are no padding)."""


class Room(CacheLayerMixin):
    """One layer: `[rows, heads, columns, d]`, of which the first `length` columns are read.

    A layer with a sliding window keeps all of them too; the model's mask keeps to the window.
    """

    is_sliding = False

    def __init__(self, rows: int, columns: int, length: int) -> None:
        super().__init__()
        self.rows, self.columns, self.length = rows, columns, length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the memory. Padding is read and masked, so it must hold numbers."""
        self.keys, self.values = (
            x.new_zeros(self.rows, x.shape[1], self.columns, x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def put(self, rows: Tensor, source: Tensor, keys: Tensor, values: Tensor) -> None:
        """Prompts `source` of `[prompts, heads, T, d]` into the rows, ending with the last read column."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        first = self.length - keys.shape[2]
        for room, given in ((self.keys, keys), (self.values, values)):
            assert room is not None
            room[rows, :, first : self.length] = given if len(source) == len(given) else given[source]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All that is to be read, after the new columns were written."""
        assert self.keys is not None
        assert self.values is not None
        first, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, first : self.length] = key_states
        self.values[:, :, first : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def keep(self, rows: Tensor, first: int) -> None:
        """Drops the other rows, and the columns before `first`."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[rows, :, first:], self.values[rows, :, first:]
        self.rows, self.columns, self.length = len(rows), self.columns - first, self.length - first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns to be read by a query, column of the first)."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns that are read."""
        return self.length

    def get_max_length(self) -> int:
        """Columns there are."""
        return self.columns


class KeyValues(Cache):
    """All layers."""

    def __init__(self, layers: int, *, rows: int, columns: int, length: int) -> None:
        self.rooms = [Room(rows, columns, length) for _ in range(layers)]
        super().__init__(layers=list(self.rooms))

    def put(self, rows: Tensor, source: Tensor, read: DynamicCache) -> None:
        """Prompts `source` of a cache that has read them into the rows, ending with the last read column."""
        for room, (keys, values, _) in zip(self.rooms, read, strict=True):
            room.put(rows, source, keys, values)

    def keep(self, rows: Tensor, first: int) -> None:
        """Drops the other rows, and the columns before `first`."""
        for room in self.rooms:
            room.keep(rows, first)


def spans_of(first: Sequence[int], length: int) -> Spans:
    """Rows that are read together: neighbours whose padding, of rows padded more and more, is about the same."""
    spans: Spans = []
    start = 0
    for row in range(1, len(first) + 1):
        if row == len(first) or first[row] - first[start] > max(SLACK, (length - first[start]) // 8):
            spans.append((start, row, first[start]))
            start = row
    return spans


def spanned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: Spans | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`[R, 1, heads, d]`: as "sdpa", without reading padding on the left of all the rows of a span."""
    if spans is None or attention_mask is None or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    out = []
    for start, stop, first in spans:
        at = slice(start, stop)
        read = key[at, :, first:], value[at, :, first:], attention_mask[at, ..., first:]
        out.append(sdpa_attention_forward(module, query[at], *read, **options)[0])
    return torch.cat(out), None


AttentionInterface.register(SPANNED, spanned_attention)
AttentionMaskInterface.register(SPANNED, sdpa_mask)


def can_span(model: PreTrainedModel) -> bool:
    """Whether the model's attention may be `spanned_attention`: it is "sdpa", and passes what it is given on."""
    own = model.config._attn_implementation in ("sdpa", PACKED)
    return own and getattr(model, "_supports_attention_backend", False)
