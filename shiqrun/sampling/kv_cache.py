"""The key-value cache of batched decoding allocates memory for all tokens once, and finished rows leave it.

Rows are padded on the left, longest prompt first. `spanned_attention` reads the cache in spans of neighbouring rows
with about the same padding, so that the padding is not attended to.
"""

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
"""Columns of padding up to which rows share a span: reading them costs less than one more call of the kernel."""

Spans = list[tuple[int, int, int]]
"""Spans of rows: (first row, row after the last, first column in which one of them has a key that is no padding)."""


class LayerCache(CacheLayerMixin):
    """A layer cache holds keys and values of a layer, `[rows, heads, columns, d]`; the first `length` columns are used.

    A layer with a sliding window keeps all columns too; the model's mask restricts it to the window.
    """

    is_sliding = False

    def __init__(self, rows: int, columns: int, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # `transformers` has no types here
        self.rows, self.columns, self.length = rows, columns, length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the cache's memory, as zeros: padding is read and masked, so it must hold finite numbers."""
        self.keys, self.values = (
            x.new_zeros(self.rows, x.shape[1], self.columns, x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def write_prompts(self, rows: Tensor, source: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values of prompts into rows, right-aligned at the last used column.

        Args:
            rows: `[R]` int64, the rows to write.
            source: `[R]` int64, which prompt each of them starts with.
            keys: `[prompts, heads, T, d]`.
            values: `[prompts, heads, T, d]`.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        first = self.length - keys.shape[2]
        for memory, prompts in ((self.keys, keys), (self.values, values)):
            assert memory is not None
            memory[rows, :, first : self.length] = prompts if len(source) == len(prompts) else prompts[source]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values; return all that are used. The model's attention calls it."""
        assert self.keys is not None
        assert self.values is not None
        first, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, first : self.length] = key_states
        self.values[:, :, first : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def keep(self, rows: Tensor, first: int) -> None:
        """Keep the keys and values of these rows only, without the columns before `first`."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[rows, :, first:], self.values[rows, :, first:]
        self.rows, self.columns, self.length = len(rows), self.columns - first, self.length - first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that a query attends to, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of used columns, one for each token read so far."""
        return self.length

    def get_max_length(self) -> int:
        """Return the number of columns that the cache has room for."""
        return self.columns


class DecodingCache(Cache):
    """A decoding cache holds the keys and values of all layers for a batch of rows."""

    def __init__(self, layers: int, *, rows: int, columns: int, length: int) -> None:
        self.layer_caches = [LayerCache(rows, columns, length) for _ in range(layers)]
        super().__init__(layers=list(self.layer_caches))

    def write_prompts(self, rows: Tensor, source: Tensor, read: DynamicCache) -> None:
        """Write prompts into rows, in all layers.

        Args:
            rows: `[R]` int64, the rows to write.
            source: `[R]` int64, which prompt each of them starts with.
            read: the cache of a forward pass over the prompts.
        """
        for layer, (keys, values, _) in zip(self.layer_caches, read, strict=True):
            layer.write_prompts(rows, source, keys, values)

    def keep(self, rows: Tensor, first: int) -> None:
        """Keep the keys and values of these rows only, without the columns before `first`, in all layers."""
        for layer in self.layer_caches:
            layer.keep(rows, first)


def spans_of(first: Sequence[int], length: int) -> Spans:
    """Return the spans of rows whose attention is computed together: neighbours with about the same padding.

    Args:
        first: for each row the first column that is no padding, in ascending order.
        length: number of used columns.
    """
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
    shared: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output `[R, 1, heads, d]` of "sdpa", without reading padding that all rows of a span share.

    It has the signature of an attention function of `transformers`; without spans it is "sdpa". With a `SharedCache`
    each row attends to its prompt, which the cache holds, and to the keys given here.
    """
    if shared is not None:
        return shared.attend(query, key, value, options), None
    if spans is None or attention_mask is None or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    out = []
    for start, stop, first in spans:
        at = slice(start, stop)
        seen = key[at, :, first:], value[at, :, first:], attention_mask[at, ..., first:]
        out.append(sdpa_attention_forward(module, query[at], *seen, **options)[0])
    return torch.cat(out), None


AttentionInterface.register(SPANNED, spanned_attention)
AttentionMaskInterface.register(SPANNED, sdpa_mask)


def can_span(model: PreTrainedModel) -> bool:
    """Return whether the model can attend by spans: it uses "sdpa", and passes options on to its attention function."""
    own = model.config._attn_implementation in ("sdpa", PACKED)
    return own and bool(getattr(model, "_supports_attention_backend", False))
