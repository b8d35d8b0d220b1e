"""The shared cache holds keys and values of prompts once, and of each row only the tokens sampled behind its prompt.

Attention is computed in two parts, over the prompt for all its rows in one product, and over each row's own tokens; the
two are joined by their log-sums of exponentials.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from shiqrun.sampling.kv_cache import spans_of
from shiqrun.sampling.shared_attention import Call, PromptSpan, attend, calls_of

FIRST_COLUMNS = 16
"""Columns that the cache of sampled tokens starts with; they double when they are full."""
UNSUPPORTED = ("softcap", "position_bias", "s_aux", "sliding_window")
"""Options of attention layers that attention in two parts does not compute."""


class SampledLayer(CacheLayerMixin):
    """A sampled layer holds keys and values of sampled tokens, `[rows, heads, columns, d]`, and grows as needed."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the first columns."""
        self.keys, self.values = (_with_columns(x[:, :, :0], FIRST_COLUMNS) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append a token's keys and values; return all of the sampled tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        at, self.length = self.length, self.length + 1
        if self.length > self.keys.shape[2]:
            self.keys, self.values = (_with_columns(x, 2 * at) for x in (self.keys, self.values))
        self.keys[:, :, at], self.values[:, :, at] = key_states[:, :, 0], value_states[:, :, 0]
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def branch(self, rows: Tensor) -> None:
        """Replace the rows by copies of these, `[R]` int64."""
        if self.keys is not None and self.values is not None:
            room = self.keys.shape[2]
            self.keys, self.values = (_with_columns(x[rows, :, : self.length], room) for x in (self.keys, self.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that a query attends to, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of sampled tokens."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1: there is no largest number of columns."""
        return -1


def _with_columns(x: Tensor, columns: int) -> Tensor:
    """Return a tensor with so many columns that begins with `x`; the others hold anything."""
    out = x.new_empty(*x.shape[:2], columns, x.shape[3])
    out[:, :, : x.shape[2]] = x
    return out


def _empty_span(first: int, lengths: list[int], like: DynamicCache) -> PromptSpan:
    """Return a span of prompts with memory for them, zeros: padding is read and masked, so it must be finite."""
    width, bias = lengths[0], None
    layers = [
        tuple(x.new_zeros(len(lengths), x.shape[1], width, x.shape[3]) for x in (keys, values))
        for keys, values, _ in like
    ]
    if lengths[-1] < width:
        some = layers[0][0]
        columns, of = torch.arange(width, device=some.device), torch.tensor(lengths, device=some.device)
        padding = columns < width - of[:, None]
        bias = some.new_zeros(padding.shape).masked_fill_(padding, float("-inf"))[:, None, None]
    return PromptSpan(first, lengths, [(keys, values) for keys, values in layers], bias)


class SharedCache(Cache):
    """A shared cache holds prompts by spans, and the sampled tokens of every row.

    Args:
        lengths: tokens of each prompt, longest first.
        like: the cache of a forward pass of the model.
    """

    def __init__(self, lengths: Sequence[int], like: DynamicCache) -> None:
        self.sampled = [SampledLayer() for _ in like.layers]
        super().__init__(layers=list(self.sampled))
        borders = spans_of([lengths[0] - n for n in lengths], lengths[0])
        self.spans = [_empty_span(start, list(lengths[start:stop]), like) for start, stop, _ in borders]
        self.calls: list[Call] = []
        self.layer = 0

    def write(self, numbers: Sequence[int], read: DynamicCache, rows: Tensor, starts: Tensor) -> None:
        """Write the keys and values of prompts, as `PromptSpan.write`."""
        for span in self.spans:
            span.write(numbers, read, rows, starts)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append a token's keys and values in a layer; it is this layer that attends next."""
        self.layer = layer_idx
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return found

    def branch(self, rows: Tensor) -> None:
        """Replace the rows by copies of these, `[R]` int64."""
        for layer in self.sampled:
            layer.branch(rows)

    def set_rows(self, counts: Sequence[int]) -> None:
        """Say how many rows each prompt has; rows stand in the order of their prompts. Prompts without any leave."""
        self.spans = [s for s in self.spans if any(counts[s.first : s.first + len(s.lengths)])]
        device = self.spans[0].layers[0][0].device
        self.calls = calls_of(self.spans, counts, device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        """Return the attention output `[R, 1, heads, d]` of each row to its prompt and to its sampled tokens.

        Args:
            query: `[R, heads, 1, d]`.
            key: `[R, key heads, t, d]`, of the sampled tokens, as `update` returned them.
            value: of the same shape.
            options: of the attention layer.

        Raises:
            ValueError: the layer has a feature that attention in two parts does not compute.
        """
        odd = [name for name in UNSUPPORTED if options.get(name) is not None]
        if odd:
            raise ValueError(f"attention with {', '.join(odd)}")
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        heads = key.shape[1]
        folded = query.reshape(len(query), heads, -1, query.shape[-1])  # [R, key heads, queries of one, d]
        own, own_sum = attend(folded, key, value, None, scale)
        parts = [call.attend(folded[call.rows], self.layer, scale) for call in self.calls]
        prompt, prompt_sum = (torch.cat(x) if len(parts) > 1 else x[0] for x in zip(*parts, strict=True))
        share = (prompt_sum - own_sum).sigmoid()[..., None]
        joined = torch.lerp(own.to(share.dtype), prompt.to(share.dtype), share).to(query.dtype)
        return joined.reshape(len(query), 1, query.shape[1], query.shape[-1])
