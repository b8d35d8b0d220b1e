"""Packed attention lets models of `transformers` read batches without padding, in which completions share prompts.

A packed batch is one row in which trajectories follow each other without padding, and a prompt that several completions
share stands once. The batch's layout lists a few calls of "sdpa" that together let every token attend to its own
trajectory alone. A model that used "sdpa" is switched to this implementation by `model_checks.enable_packing`, after a
check that its scores stay the same; for a padded batch it is "sdpa".
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from shiqrun.layout import Attention

PACKED = "shiqrun_packed"
"""The name of the implementation in `transformers`."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Attention | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output `[1, L, heads, d]`, in which every token attends within its own trajectory.

    Args:
        module: the attention layer.
        query: `[1, heads, L, d]`.
        key: `[1, key heads, L, d]`.
        value: `[1, key heads, L, d]`.
        attention_mask: read only without `packing`.
        packing: the attention pattern of the packed batch; None to attend by "sdpa".
        options: the layer's other options: scaling, sliding_window.

    Raises:
        ValueError: the layer has a feature that packed attention does not support: a cap on attention logits, a bias of
            positions, sinks, or a window that is in the mask alone.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    _refuse_unsupported(module, options)
    q, k, v = (x.transpose(1, 2)[0] for x in (query, key, value))  # [L, heads, d]
    q = q if packing.queries is None else q.index_select(0, packing.queries)
    k, v = (x if packing.keys is None else x.index_select(0, packing.keys) for x in (k, v))
    queries, keys = _sizes(packing)
    masks = _masks(packing, options.get("sliding_window"))
    calls = zip(packing.calls, masks, q.split(queries), k.split(keys), v.split(keys), strict=True)
    groups = query.shape[1] // key.shape[1]
    out = []
    for call, mask, *parts in calls:
        heads = [x.unflatten(0, (call.branches, -1)).transpose(1, 2) for x in parts]  # [R, heads, tokens, d]
        attended = nn.functional.scaled_dot_product_attention(
            heads[0],
            repeat_kv(heads[1], groups),
            repeat_kv(heads[2], groups),
            attn_mask=mask,
            is_causal=mask is None,
            scale=options.get("scaling"),
        )
        out.append(attended.transpose(1, 2).flatten(0, 1))
    joined = torch.cat(out)
    return (joined if packing.outputs is None else joined.index_select(0, packing.outputs))[None], None


def _refuse_unsupported(module: nn.Module, options: dict[str, Any]) -> None:
    """Raise ValueError if an attention layer has a feature that packed attention does not support."""
    odd = [name for name in ("softcap", "position_bias", "s_aux") if options.get(name) is not None]
    if "sliding_window" not in options:  # a window that is in the mask alone is unknown here
        odd += [name for name in ("sliding_window", "attention_chunk_size") if getattr(module.config, name, None)]
    if odd:
        raise ValueError(f"attention with {', '.join(odd)}")


def _sizes(packing: Attention) -> tuple[list[int], list[int]]:
    """Return the numbers of queries and of keys of each call."""
    return [c.branches * c.queries for c in packing.calls], [c.branches * c.keys for c in packing.calls]


def _masks(packing: Attention, window: int | None) -> list[Tensor | None]:
    """Return the attention mask of each call; a sliding window shorter than a trajectory hides earlier keys, too."""
    if window is None or window >= packing.longest:
        return [call.mask for call in packing.calls]
    queries, keys = _sizes(packing)
    masks: list[Tensor | None] = []
    positions = zip(
        packing.calls, packing.query_positions.split(queries), packing.key_positions.split(keys), strict=True
    )
    for call, q, k in positions:
        back = q.view(call.branches, 1, -1, 1) - k.view(call.branches, 1, 1, -1)
        causal = back.new_ones(call.queries, call.keys, dtype=torch.bool).tril() if call.mask is None else call.mask
        masks.append((back < window) & causal)
    return masks


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Switch a model from "sdpa" to packed attention where it seems able; return whether it reads packed batches."""
    able = getattr(model, "_supports_attention_backend", False) and not getattr(model, "_is_stateful", False)
    if able and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PACKED)
    return reads_packed(model)


def use_padded_attention(model: PreTrainedModel) -> None:
    """Switch a model from packed attention back to "sdpa", which reads padded batches."""
    if reads_packed(model):
        model.set_attn_implementation("sdpa")


def reads_packed(model: Any) -> bool:
    """Return whether a model uses packed attention, so that it can read packed batches."""
    return bool(model.config._attn_implementation == PACKED)
