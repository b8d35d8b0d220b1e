"""`score_actions` computes logits and log-partitions of actions without holding the `[B, T, V]` logits of a batch.

Only the hidden states of the N positions that predict an action arrive here. They are multiplied with the head in
chunks of rows, each a tile of logits `[chunk, V]`, from which the few numbers that losses need are read off; memory is
O(chunk * V). `chunked_scores` has the formulas and their gradient.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shiqrun.models.chunked_scores import HALF, Plan, chunked_scores
from shiqrun.models.vocabulary_kl import States, scores_against

TILE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""Memory of one tile of logits, by device."""
SMALLEST_CHUNK = {"cpu": 256, "cuda": 1024}
"""Rows of a tile below which its matrix product is inefficient, by device."""
KEPT_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
"""Memory up to which the forward pass keeps `[N, V]` for the backward pass, by device."""


def chunk_rows(vocabulary: int, device: str, itemsize: int = 4) -> int:
    """Return how many rows of logits a tile has: what fits its memory, at least `SMALLEST_CHUNK`, at most 4096."""
    budget = TILE_BYTES.get(device, TILE_BYTES["cuda"])
    return min(4096, max(SMALLEST_CHUNK.get(device, 1024), budget // (itemsize * vocabulary) // 32 * 32))


class ScoredActions(NamedTuple):
    """A `ScoredActions` holds the scores of N actions; float32 and nats unless said otherwise.

    Attributes:
        logit: `[N]`, logit of the action.
        log_partition: `[N]`, logsumexp of the row of logits.
        further: `[N, K]`, logits of the further tokens.
        further_tokens: `[N, K]` int64, the further tokens.
        entropy: `[N]`, entropy of the softmax, without gradient; None if not asked for.
        hits: `[N]` bool, True where the action is the most likely token; None if not asked for.
        kl: `[N]`, KL to another model over the vocabulary; None without one.
    """

    logit: Tensor
    log_partition: Tensor
    further: Tensor
    further_tokens: Tensor
    entropy: Tensor | None
    hits: Tensor | None
    kl: Tensor | None = None


def score_actions(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Return the logits and log-partitions of N actions, each `[N]`, nats, float32 (float64 for float64 input).

    Args:
        hidden: `[N, D]`, the backbone's output at the positions that predict the actions.
        weight: `[V, D]`, the output head.
        bias: `[V]` or None.
        targets: `[N]` int64, the action tokens.
        options: scale, cap, chunk, keep and dtype of `score_further`.

    Raises:
        ValueError: the shapes do not fit.
    """
    scored = score_further(hidden, weight, bias, targets, **options)
    return scored.logit, scored.log_partition


def score_further(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    further: Tensor | None = None,
    sample: int = 0,
    describe: bool = False,
    scale: float = 1.0,
    cap: float | None = None,
    chunk: int | None = None,
    keep: bool | None = None,
    dtype: torch.dtype | None = None,
    against: States | None = None,
) -> ScoredActions:
    """Return the scores of N actions and of further tokens at the same states, all differentiable.

    Args:
        hidden: `[N, D]`, the body's output at the positions that predict the actions.
        weight: `[V, D]`, the output head.
        bias: `[V]` or None.
        targets: `[N]` int64, the action tokens.
        further: `[N, K]` int64, further tokens whose logits are wanted; None for none.
        sample: number of further tokens to sample from the policy itself at each state, behind those of `further`.
        describe: also return entropy and arg-max hits.
        scale: logits are multiplied by it, bias included.
        cap: logits x, scaled, become cap tanh(x / cap); None for no soft-cap.
        chunk: rows of one tile; None to choose from V and the device.
        keep: keep `[N, V]` for the backward pass instead of computing it again; None: if it fits `KEPT_BYTES`. A
            frozen head (neither weight nor bias takes a gradient) needs neither.
        dtype: of the factors of matrix products on a GPU, None for that of hidden and weight; products come out in
            float32 all the same. On a CPU, where no such product exists, the factors are float32: rounded to bfloat16,
            logits would be wrong by some 2e-2 nats.
        against: states of another model, to which the KL is returned; tiles are computed twice, whatever `keep` says.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes(hidden, weight, bias, targets, further)
    device, factors = hidden.device.type, _factor_dtype(hidden, weight, dtype)
    way = _way(hidden, weight, bias, factors, keep)
    plan = Plan(scale, cap, factors, way, chunk or chunk_rows(weight.shape[0], device), sample, describe)
    tokens = targets[:, None] if further is None else torch.cat([targets[:, None], further], 1)
    given = (hidden, weight, bias, tokens)
    with torch.autocast(device, enabled=False):
        found: Any = (*chunked_scores(*given, plan), None) if against is None else scores_against(*given, against, plan)
    picked, tokens, partition, entropy, hits, kl = found
    seen, hit = (entropy, hits) if describe else (None, None)
    return ScoredActions(picked[:, 0], partition, picked[:, 1:], tokens[:, 1:], seen, hit, kl)


def _way(hidden: Tensor, weight: Tensor, bias: Tensor | None, factors: torch.dtype, keep: bool | None) -> str:
    """Return how the backward pass gets the softmax: frozen, kept or recomputed; none without a gradient."""
    if keep is None:
        room = KEPT_BYTES.get(hidden.device.type, KEPT_BYTES["cuda"])
        keep = hidden.shape[0] * weight.shape[0] * factors.itemsize <= room
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    frozen = trained and not (weight.requires_grad or (bias is not None and bias.requires_grad))
    return "frozen" if frozen else ("kept" if keep else "recomputed") if trained else "none"


def _check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, further: Tensor | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [N, D] and [V, D]")
    if tuple(targets.shape) != (hidden.shape[0],):
        raise ValueError(f"targets has shape {list(targets.shape)}, expected {[hidden.shape[0]]}")
    if further is not None and (further.ndim != 2 or further.shape[0] != hidden.shape[0]):
        raise ValueError(f"further has shape {list(further.shape)}, expected {[hidden.shape[0], 'K']}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {list(bias.shape)}, expected {[weight.shape[0]]}")


def _factor_dtype(hidden: Tensor, weight: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    own = torch.promote_types(hidden.dtype, weight.dtype)
    if own == torch.float64:
        return own
    mixed = hidden.is_cuda and hasattr(torch.ops.aten.mm, "dtype")  # torch 2.8 and later
    return dtype or own if mixed and (dtype or own) in HALF else torch.float32
