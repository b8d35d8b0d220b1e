"""The two numbers per action that every loss needs, without ever holding `[B, T, V]` logits.

    logit_i = h_i . W[y_i] + b[y_i],    log_partition_i = logsumexp_v (h_i . W[v] + b[v])

Only the N positions that predict an action arrive here, and they are processed in chunks of rows, recomputed in the
backward pass, so that memory is O(chunk * V). Both outputs take their own upstream gradient:
d/dlogits = g_logit * onehot(y) + g_partition * softmax. Logits of further tokens (the anchor's) come from the same
tiles. Tiles and reductions are float32 (float64 for float64
input) whatever the dtype of the model: in bfloat16 a log-partition near 16 moves in steps of 0.125.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
SMALLEST_CHUNK = {"cpu": 256, "cuda": 1024}


def chunk_rows(vocabulary: int, device: str, itemsize: int = 4) -> int:
    """Rows of one tile: what fits the budget, at least what keeps the matrix product efficient, at most 4096."""
    budget = TILE_BYTES.get(device, TILE_BYTES["cuda"])
    return min(4096, max(SMALLEST_CHUNK.get(device, 1024), budget // (itemsize * vocabulary) // 32 * 32))


class Scored(NamedTuple):
    """What can be read off a row of logits without keeping it, for N actions; nats.

    Attributes:
        logit: `[N]`, of the action.
        log_partition: `[N]`.
        further: `[N, K]`, logits of the further tokens.
        further_tokens: `[N, K]` int64, which they are.
        entropy: `[N]`, without gradient, or None if not asked for.
        hits: `[N]` bool, whether the action is the most likely token, or None.
    """

    logit: Tensor
    log_partition: Tensor
    further: Tensor
    further_tokens: Tensor
    entropy: Tensor | None
    hits: Tensor | None


def score_actions(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """(logit, log_partition) of N actions, each `[N]`, nats, float32 (float64 for float64 input).

    Args:
        hidden: `[N, D]`, the backbone's output at the positions that predict the actions.
        weight: `[V, D]`, the output head.
        bias: `[V]` or None.
        targets: `[N]` int64, the action tokens.
        chunk: rows of one tile; chosen from V and the device when None.

    Raises:
        ValueError: shapes that do not fit.
    """
    scored = score_further(hidden, weight, bias, targets, chunk=chunk)
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
    chunk: int | None = None,
) -> Scored:
    """`score_actions`, and the logits of further tokens at the same states, differentiable like the first.

    Args:
        hidden: as for `score_actions`, like weight, bias, targets and chunk.
        further: `[N, K]` int64, further tokens.
        sample: further tokens to draw from the policy itself at each state, behind those of `further`.
        describe: also give entropy and arg-max hits.

    Raises:
        ValueError: shapes that do not fit.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [N, D] and [V, D]")
    if tuple(targets.shape) != (hidden.shape[0],):
        raise ValueError(f"targets has shape {list(targets.shape)}, expected {[hidden.shape[0]]}")
    if further is not None and (further.ndim != 2 or further.shape[0] != hidden.shape[0]):
        raise ValueError(f"further has shape {list(further.shape)}, expected {[hidden.shape[0], 'K']}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {list(bias.shape)}, expected {[weight.shape[0]]}")
    rows = chunk or chunk_rows(weight.shape[0], hidden.device.type)
    tokens = targets[:, None] if further is None else torch.cat([targets[:, None], further], 1)
    with torch.autocast(hidden.device.type, enabled=False):
        out = _ChunkedScores.apply(hidden, weight, bias, tokens, rows, sample, describe)
    picked, partition, tokens, entropy, hits = out
    return Scored(
        picked[:, 0], partition, picked[:, 1:], tokens[:, 1:], *((entropy, hits) if describe else (None, None))
    )


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _tile(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits of a few rows, `[n, V]`, in the precise dtype."""
    tile = hidden @ weight.t()
    return tile if bias is None else tile.add_(bias)


class _ChunkedScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        rows: int,
        sample: int,
        describe: bool,
    ) -> Any:
        head, shift = _precise(weight), None if bias is None else _precise(bias)
        picked, partitions, chosen, entropies, hits = [], [], [], [], []
        for h, y in zip(hidden.split(rows), tokens.split(rows), strict=True):
            tile = _tile(_precise(h).to(head.dtype), head, shift)
            partition = tile.logsumexp(-1)
            if describe:
                hits.append(tile.argmax(-1) == y[:, 0])
            if sample or describe:
                p = (tile - partition[:, None]).exp_()
                if sample and len(p):
                    y = torch.cat([y, torch.multinomial(p, sample, replacement=True)], 1)
                if describe:
                    entropies.append(partition - (p.mul_(tile)).sum(-1))
            picked.append(tile.gather(-1, y))
            partitions.append(partition)
            chosen.append(y)
        all_tokens = torch.cat(chosen)
        ctx.save_for_backward(hidden, weight, bias, all_tokens)
        ctx.rows = rows
        none = all_tokens.new_zeros(0)
        seen = (torch.cat(entropies), torch.cat(hits)) if describe else (none, none.clone())
        ctx.mark_non_differentiable(all_tokens, *seen)
        return torch.cat(picked), torch.cat(partitions), all_tokens, *seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_picked: Tensor, grad_partition: Tensor, *_: Any) -> Any:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # a backward pass may run inside one
            return _ChunkedScores._gradients(ctx, grad_picked, grad_partition)

    @staticmethod
    def _gradients(ctx: Any, grad_picked: Tensor, grad_partition: Tensor) -> Any:
        hidden, weight, bias, tokens = ctx.saved_tensors
        head, shift = _precise(weight), None if bias is None else _precise(bias)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(head) if wants_weight else None
        grad_bias = torch.zeros_like(shift) if wants_bias and shift is not None else None
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            h = _precise(hidden[part]).to(head.dtype)
            tile = _tile(h, head, shift)
            tile = tile.sub_(tile.logsumexp(-1, keepdim=True)).exp_().mul_(grad_partition[part, None])
            tile.scatter_add_(-1, tokens[part], grad_picked[part])
            if grad_hidden is not None:
                grad_hidden[part] = tile @ head
            if grad_weight is not None:
                grad_weight.addmm_(tile.t(), h)
            if grad_bias is not None:
                grad_bias += tile.sum(0)
        cast = [g if g is None else g.to(x.dtype) for g, x in ((grad_weight, weight), (grad_bias, bias))]
        return grad_hidden, *cast, None, None, None, None
