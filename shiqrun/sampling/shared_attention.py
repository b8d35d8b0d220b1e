"""Attention to a prompt is computed for all rows that share the prompt in one product.

Attention over two sets of keys is joined exactly by the log-sums of exponentials that each part returns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

RAGGED = 2
"""Prompts with different numbers of rows share a call while it computes at most so many times the queries needed."""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Return attention without a causal mask, and its log-sums of exponentials in float32 or float64.

    Args:
        query: `[B, heads, n, d]`.
        key: `[B, heads, T, d]`.
        value: `[B, heads, T, d]`.
        bias: added to the products, `[B, 1, 1, T]`; None for none.
        scale: the products are multiplied by it.

    Returns:
        The output `[B, heads, n, d]` and the log-sums `[B, heads, n]`.
    """
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, log_sum = kernel(query, key, value, 0.0, False, attn_mask=bias, scale=scale)
        return out, log_sum
    return attend_by_products(query, key, value, bias, scale)


def attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return what `attend` does, by two matrix products, on any device."""
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores if bias is None else scores + bias
    log_sum = scores.logsumexp(-1)
    return torch.matmul((scores - log_sum[..., None]).exp().to(value.dtype), value), log_sum


@dataclass
class PromptSpan:
    """A prompt span holds keys and values of neighbouring prompts of about one length, padded on the left.

    Attributes:
        first: number of its first prompt.
        lengths: tokens of each prompt, longest first.
        layers: keys and values of each layer, `[prompts, heads, T, d]`.
        bias: `[prompts, 1, 1, T]`, 0 at tokens and -inf at padding; None without padding.
    """

    first: int
    lengths: list[int]
    layers: list[tuple[Tensor, Tensor]]
    bias: Tensor | None

    def write(self, numbers: Sequence[int], read: DynamicCache, rows: Tensor, starts: Tensor) -> None:
        """Write those of these prompts that the span holds, each from a row of a forward pass's cache and a column on.

        Args:
            numbers: of prompts.
            read: the cache of the forward pass.
            rows: `[n]` int64, where each prompt stands in it.
            starts: `[n]` int64, the first column of each prompt.
        """
        here = [k for k, number in enumerate(numbers) if 0 <= number - self.first < len(self.lengths)]
        if not here:
            return
        own = [numbers[k] - self.first for k in here]
        width = self.lengths[0]
        padding = torch.tensor([width - self.lengths[n] for n in own], device=rows.device)
        columns = starts[here] - padding
        seen = (columns[:, None] + torch.arange(width, device=rows.device)).clamp_(min=0)  # [n, T]
        for memories, (keys, values, _) in zip(self.layers, read, strict=True):
            for memory, some in zip(memories, (keys, values), strict=True):
                memory[own] = some[rows[here, None], :, seen].transpose(1, 2)


@dataclass(frozen=True)
class Call:
    """A call computes the attention of neighbouring rows to their prompts in one product.

    Attributes:
        rows: the rows.
        span: the prompts' keys and values.
        prompts: the prompts within the span.
        index: `[prompts * queries]` int64, rows within the call; a prompt with fewer rows than another repeats one.
            None if all prompts have as many.
        back: `[rows]` int64, the place of each row in `index`.
    """

    rows: slice
    span: PromptSpan
    prompts: slice
    index: Tensor | None
    back: Tensor | None

    def attend(self, query: Tensor, layer: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return the attention of rows to their prompts, and its log-sums of exponentials, as `attend`.

        Args:
            query: `[rows, key heads, queries of one, d]`.
            layer: number of the layer.
            scale: see `attend`.
        """
        keys, values = (x[self.prompts] for x in self.span.layers[layer])
        bias = None if self.span.bias is None else self.span.bias[self.prompts]
        asked = query if self.index is None else query[self.index]
        asked = asked.unflatten(0, (len(keys), -1)).transpose(1, 2)  # [prompts, key heads, rows, queries of one, d]
        out, log_sum = attend(asked.flatten(2, 3), keys, values, bias, scale)
        shape = (asked.shape[2], asked.shape[3])
        found = [x.unflatten(2, shape).transpose(1, 2).flatten(0, 1) for x in (out, log_sum)]
        return (found[0], found[1]) if self.back is None else (found[0][self.back], found[1][self.back])


def calls_of(spans: Sequence[PromptSpan], counts: Sequence[int], device: torch.device) -> list[Call]:
    """Return the calls that compute the attention of all rows to their prompts.

    Args:
        spans: the prompts.
        counts: number of rows of each prompt; rows stand in the order of their prompts.
        device: of the indices.
    """
    calls, row = [], 0
    for span in spans:
        own = counts[span.first : span.first + len(span.lengths)]
        for start, stop in _even_parts(own):
            part = own[start:stop]
            rows, each = slice(row, row + sum(part)), max(part)
            index, back = (None, None) if min(part) == each else _padded(part, each, device)
            calls.append(Call(rows, span, slice(start, stop), index, back))
            row = rows.stop
    return calls


def _even_parts(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ranges of prompts, without those that have no row, whose numbers of rows do not differ too much."""
    start, most, total = 0, 0, 0
    for n, count in enumerate(counts):
        more = max(most, count)
        if n > start and (not count or more * (n + 1 - start) > RAGGED * (total + count)):
            yield start, n
            start, most, total = n, 0, 0
        if count:
            most, total = max(most, count), total + count
        else:
            start = n + 1
    if total:
        yield start, len(counts)


def _padded(counts: Sequence[int], each: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows that stand at `each` places of every prompt, and the place of each row."""
    of, place = torch.tensor(counts, device=device)[:, None], torch.arange(each, device=device)
    first = of.cumsum(0) - of
    index = first + torch.minimum(place, of - 1)
    return index.flatten(), (place < of).flatten().nonzero()[:, 0]
