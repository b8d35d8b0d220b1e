"""The two numbers per action that every loss needs, without ever holding `[B, T, V]` logits.

    x_iv = cap tanh(scale (h_i . W[v] + b[v]) / cap),    logit_i = x_iy,    log_partition_i = logsumexp_v x_iv

(without a soft-cap x is its argument). Only the N positions that predict an action arrive here, and they are processed
in chunks of rows, so that memory is O(chunk * V). Each output takes its own upstream gradient, and so do the logits of
further tokens (the anchor's), read off the same tiles. With p the softmax, d its upstream gradient and c = 1 - (x /
cap)^2 that of the cap, the gradient to scale (h . W + b) is the sum of two parts,

    d_i p_iv c_iv   for tokens v that were not read off,        (d_i p_iy + g_iy) c_iy   for the few y that were,

so that a tile is never touched once it holds p c: upstream gradients scale rows of `[N, D]`, and the second part is
gathered and scattered in full precision, also where p_iy is nearly 1 and the sum cancels. Hence three ways, all exact:

    frozen head    p c W is computed in the forward pass, the backward pass has no matrix product   2 products, N D held
    kept           p c is held                                                                      3 products, N V held
    recomputed     p c is computed again in the backward pass                                       4 products

Tiles, reductions and the head's gradient are float32 (float64 for float64 input) whatever the dtype of the model: in
bfloat16 a log-partition near 16 moves in steps of 0.125.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
SMALLEST_CHUNK = {"cpu": 256, "cuda": 1024}
KEPT_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
HALF = (torch.bfloat16, torch.float16)


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
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """(logit, log_partition) of N actions, each `[N]`, nats, float32 (float64 for float64 input).

    Args:
        hidden: `[N, D]`, the backbone's output at the positions that predict the actions.
        weight: `[V, D]`, the output head.
        bias: `[V]` or None.
        targets: `[N]` int64, the action tokens.
        options: scale, cap, chunk, keep and dtype of `score_further`.

    Raises:
        ValueError: shapes that do not fit.
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
) -> Scored:
    """`score_actions`, and the logits of further tokens at the same states, differentiable like the first.

    Args:
        hidden: as for `score_actions`, like weight, bias and targets.
        further: `[N, K]` int64, further tokens.
        sample: further tokens to draw from the policy itself at each state, behind those of `further`.
        describe: also give entropy and arg-max hits.
        scale: logits are multiplied by it, bias included.
        cap: logits x, scaled, become cap tanh(x / cap); None for no soft-cap.
        chunk: rows of one tile; chosen from V and the device when None.
        keep: hold `[N, V]` for the backward pass instead of computing it again; None: if it fits 256 MiB on a CPU,
            1 GiB elsewhere. A frozen head (neither weight nor bias takes a gradient) needs neither.
        dtype: of the factors of matrix products on a GPU, None for that of hidden and weight; products come out in
            float32 all the same. On a CPU, where no such product exists, the factors are float32: rounded to bfloat16,
            logits would be wrong by some 2e-2 nats.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_shapes(hidden, weight, bias, targets, further)
    device, factors = hidden.device.type, _factor_dtype(hidden, weight, dtype)
    if keep is None:
        keep = hidden.shape[0] * weight.shape[0] * factors.itemsize <= KEPT_BYTES.get(device, KEPT_BYTES["cuda"])
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    frozen = trained and not (weight.requires_grad or (bias is not None and bias.requires_grad))
    way = "frozen" if frozen else ("kept" if keep else "recomputed") if trained else "none"
    how = _How(scale, cap, factors, way, chunk or chunk_rows(weight.shape[0], device), sample, describe)
    tokens = targets[:, None] if further is None else torch.cat([targets[:, None], further], 1)
    with torch.autocast(device, enabled=False):
        picked, tokens, partition, entropy, hits = _ChunkedScores.apply(hidden, weight, bias, tokens, how)
    seen = (entropy, hits) if describe else (None, None)
    return Scored(picked[:, 0], partition, picked[:, 1:], tokens[:, 1:], *seen)


def _check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, further: Tensor | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [N, D] and [V, D]")
    if tuple(targets.shape) != (hidden.shape[0],):
        raise ValueError(f"targets has shape {list(targets.shape)}, expected {[hidden.shape[0]]}")
    if further is not None and (further.ndim != 2 or further.shape[0] != hidden.shape[0]):
        raise ValueError(f"further has shape {list(further.shape)}, expected {[hidden.shape[0], 'K']}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {list(bias.shape)}, expected {[weight.shape[0]]}")


class _How(NamedTuple):
    scale: float
    cap: float | None
    factors: torch.dtype
    way: str
    rows: int
    sample: int
    describe: bool


def _factor_dtype(hidden: Tensor, weight: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    own = torch.promote_types(hidden.dtype, weight.dtype)
    if own == torch.float64:
        return own
    mixed = hidden.is_cuda and "dtype" in torch.ops.aten.mm.overloads()  # torch 2.8 and later
    return dtype or own if mixed and (dtype or own) in HALF else torch.float32


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b, in float32 (float64 for float64) also of half-precision factors."""
    return torch.mm(a, b, out_dtype=torch.float32, out=out) if a.dtype in HALF else torch.mm(a, b, out=out)


def _parts(n: int, rows: int) -> Iterator[slice]:
    """Rows of each tile; one empty tile if there are none."""
    return (slice(start, min(n, start + rows)) for start in range(0, max(n, 1), rows))


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, how: _How, out: Tensor) -> Tensor:
    """Logits of a few rows, `[n, V]`, written to `out`."""
    x = _product(hidden.to(how.factors), head.t(), out)
    if bias is not None:
        x += bias
    if how.scale != 1.0:
        x *= how.scale
    return x if how.cap is None else x.div_(how.cap).tanh_().mul_(how.cap)


def _read(x: Tensor, p: Tensor, tokens: Tensor, how: _How) -> tuple[Tensor, ...]:
    """(logits read off, their tokens, log-partition, entropy, hits) of logits x; p, or x itself, takes the softmax."""
    picked, top = x.gather(-1, tokens), x.amax(-1)
    hits = x.argmax(-1) == tokens[:, 0] if how.describe else tokens.new_empty(0, dtype=torch.bool)
    torch.softmax(x, -1, out=p)
    partition = (
        top - p.amax(-1).log()
    )  # the largest p is exp(top - partition); a logsumexp would cost a tile of its own
    entropy = partition - torch.linalg.vecdot(p, x) if how.describe else x.new_empty(0)
    if how.sample:
        drawn = torch.multinomial(p, how.sample, replacement=True) if len(p) else tokens.new_empty(0, how.sample)
        tokens, picked = torch.cat([tokens, drawn], 1), torch.cat([picked, x.gather(-1, drawn)], 1)
    return picked, tokens, partition, entropy, hits


def _weigh(p: Tensor, x: Tensor, tokens: Tensor, cap: float | None) -> Tensor:
    """p c, zero at the tokens read off, in p; with a soft-cap, the logits x are spent."""
    p.scatter_(-1, tokens, 0.0)
    return p if cap is None else p.addcmul_(p, x.square_(), value=-1 / cap**2)


class _ChunkedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, how: _How) -> Any:
        n, head = len(hidden), weight.to(how.factors)
        precise = torch.promote_types(how.factors, torch.float32)
        kept = head.new_empty(n, len(head)) if how.way == "kept" else None
        mean = head.new_empty(n, head.shape[1], dtype=precise) if how.way == "frozen" else None
        apart = how.sample > 0 or how.describe or (how.cap is not None and how.way != "none")
        size = (min(n, how.rows), len(head))
        tile = kept if kept is not None and kept.dtype == precise else head.new_empty(size, dtype=precise)
        spare = head.new_empty(size, dtype=precise) if apart else tile
        read = []
        for part in _parts(n, how.rows):
            p = tile[part] if tile is kept else tile[: part.stop - part.start]
            x = spare[: len(p)] if apart else p
            read.append(_read(_logits(hidden[part], head, bias, how, x), p, tokens[part], how))
            if kept is not None or mean is not None:
                _weigh(p, x, read[-1][1], how.cap)
            if mean is not None:
                _product(p.to(head.dtype), head, mean[part])
            elif kept is not None and tile is not kept:
                kept[part] = p
        picked, chosen, partition, entropy, hits = (torch.cat(x) for x in zip(*read, strict=True))
        ctx.how = how
        ctx.save_for_backward(hidden, weight, bias, chosen, picked, partition, kept, mean)
        ctx.mark_non_differentiable(chosen, entropy, hits)
        return picked, chosen, partition, entropy, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_picked: Tensor, _tokens: Any, grad_partition: Tensor, *_: Any) -> Any:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # a backward pass may run inside one
            return _gradients(ctx, grad_picked, grad_partition)


def _gradients(ctx: Any, grad_picked: Tensor, grad_partition: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, tokens, picked, partition, kept, mean = ctx.saved_tensors
    how, wants, d = ctx.how, ctx.needs_input_grad, grad_partition[:, None] * ctx.how.scale
    g = _at_tokens(grad_picked * how.scale, d, tokens, picked, partition, how.cap)
    h = hidden.to(how.factors)
    to_hidden = mean * d if mean is not None else torch.empty_like(h, dtype=d.dtype) if wants[0] else None
    to_weight = torch.zeros_like(weight, dtype=d.dtype) if wants[1] else None
    to_bias = torch.zeros_like(bias, dtype=d.dtype) if wants[2] else None
    if mean is None:
        head = weight.to(how.factors)
        whole = [(slice(None), kept)] if kept is not None else _again(h, head, bias, tokens, how)
        for part, p in whole:
            if to_hidden is not None:
                _product(p, head, to_hidden[part]).mul_(d[part])
            if to_weight is not None:
                _add_product(to_weight, p.t(), h[part] * d[part])
            if to_bias is not None:
                _add_product(to_bias[:, None], p.t(), d[part])
    for y, at in zip(tokens.t(), g.t(), strict=True):  # [N] each
        if to_hidden is not None:
            to_hidden.addcmul_(at[:, None], weight[y].to(how.factors))
        if to_weight is not None:
            to_weight.index_add_(0, y, at[:, None] * h)
        if to_bias is not None:
            to_bias.index_add_(0, y, at)
    found = ((to_hidden, hidden), (to_weight, weight), (to_bias, bias))
    return *(x if x is None else x.to(like.dtype) for x, like in found), None, None


def _again(h: Tensor, head: Tensor, bias: Tensor | None, tokens: Tensor, how: _How) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each tile and its p c, computed once more."""
    tile = head.new_empty(min(len(h), how.rows), len(head), dtype=torch.promote_types(how.factors, torch.float32))
    spare = tile if how.cap is None else torch.empty_like(tile)
    for part in _parts(len(h), how.rows):
        p, x = tile[: part.stop - part.start], spare[: part.stop - part.start]
        torch.softmax(_logits(h[part], head, bias, how, x), -1, out=p)
        yield part, _weigh(p, x, tokens[part], how.cap).to(how.factors)


def _at_tokens(g: Tensor, d: Tensor, tokens: Tensor, picked: Tensor, partition: Tensor, cap: float | None) -> Tensor:
    """(d p + g) c at the tokens read off, `[N, K]`; d p only once for a token that a row names more than once."""
    ordered, order = tokens.sort(dim=-1, stable=True)
    again = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, order[:, 1:], ordered.diff() == 0)
    grad = torch.addcmul(g, d, (picked - partition[:, None]).exp_().masked_fill_(again, 0.0))
    return grad if cap is None else grad.mul_(1 - (picked / cap).square_())


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, in the precision of total."""
    b = b.to(a.dtype)
    if a.dtype in HALF:
        total += _product(a, b)
    else:
        total.addmm_(a, b)
