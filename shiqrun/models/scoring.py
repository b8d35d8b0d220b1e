"""The two numbers per action that every loss needs, without ever holding `[B, T, V]` logits.

    logit_i = h_i . W[y_i] + b[y_i],    log_partition_i = logsumexp_v (h_i . W[v] + b[v])

Only the N positions that predict an action arrive here, and they are processed in chunks of rows, recomputed in the
backward pass, so that memory is O(chunk * V). Both outputs take their own upstream gradient:
d/dlogits = g_logit * onehot(y) + g_partition * softmax. Tiles and reductions are float32 (float64 for float64
input) whatever the dtype of the model: in bfloat16 a log-partition near 16 moves in steps of 0.125.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
SMALLEST_CHUNK = {"cpu": 256, "cuda": 1024}


def chunk_rows(vocabulary: int, device: str, itemsize: int = 4) -> int:
    """Rows of one tile: what fits the budget, at least what keeps the matrix product efficient, at most 4096."""
    budget = TILE_BYTES.get(device, TILE_BYTES["cuda"])
    return min(4096, max(SMALLEST_CHUNK.get(device, 1024), budget // (itemsize * vocabulary) // 32 * 32))


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
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [N, D] and [V, D]")
    if tuple(targets.shape) != (hidden.shape[0],):
        raise ValueError(f"targets has shape {list(targets.shape)}, expected {[hidden.shape[0]]}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {list(bias.shape)}, expected {[weight.shape[0]]}")
    rows = chunk or chunk_rows(weight.shape[0], hidden.device.type)
    with torch.autocast(hidden.device.type, enabled=False):
        logit, log_partition = _ChunkedScores.apply(hidden, weight, bias, targets, rows)
    return logit, log_partition


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _tile(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits of a few rows, `[n, V]`, in the precise dtype."""
    tile = hidden @ weight.t()
    return tile if bias is None else tile.add_(bias)


class _ChunkedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int) -> Any:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.rows = rows
        head, shift = _precise(weight), None if bias is None else _precise(bias)
        logits, partitions = [], []
        for h, y in zip(hidden.split(rows), targets.split(rows), strict=True):
            tile = _tile(_precise(h).to(head.dtype), head, shift)
            logits.append(tile.gather(-1, y[:, None]).squeeze(-1))
            partitions.append(tile.logsumexp(-1))
        return torch.cat(logits), torch.cat(partitions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logit: Tensor, grad_partition: Tensor) -> Any:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # a backward pass may run inside one
            return _ChunkedScores._gradients(ctx, grad_logit, grad_partition)

    @staticmethod
    def _gradients(ctx: Any, grad_logit: Tensor, grad_partition: Tensor) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
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
            tile.scatter_add_(-1, targets[part, None], grad_logit[part, None])
            if grad_hidden is not None:
                grad_hidden[part] = tile @ head
            if grad_weight is not None:
                grad_weight.addmm_(tile.t(), h)
            if grad_bias is not None:
                grad_bias += tile.sum(0)
        cast = [g if g is None else g.to(x.dtype) for g, x in ((grad_weight, weight), (grad_bias, bias))]
        return grad_hidden, *cast, None, None
