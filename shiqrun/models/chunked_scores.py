"""An autograd function computes logits and log-partitions of actions from hidden states, one tile of rows at a time.

    x_iv = cap tanh(scale (h_i . W[v] + b[v]) / cap),    logit_i = x_iy,    log_partition_i = logsumexp_v x_iv

(without a soft-cap, x is scale (h . W + b) itself). Logits of further tokens (the anchor's) are read off the same tiles
as those of the actions.

The gradient is exact and written by hand. Let p be the softmax of a row, d the upstream gradient of its log-partition,
g_y that of the logit of a token y that was read off, and c = 1 - (x / cap)^2 the derivative of the soft-cap. The
gradient to scale (h . W + b) is

    d_i p_iv c_iv              at the tokens v that were not read off
    (d_i p_iy + g_iy) c_iy     at the few tokens y that were

The two parts are computed apart: a tile holds p c, zero at the tokens read off, and is never touched again, because
upstream gradients scale rows of `[N, D]`; the second part is gathered and scattered in full precision, also where p_iy
is nearly 1 and the sum cancels. There are three ways to bring p c to the backward pass, all exact:

    frozen head    the forward pass computes p c W; the backward pass has no product    2 matrix products, N D held
    kept           the forward pass keeps p c                                           3 matrix products, N V held
    recomputed     the backward pass computes p c again                                 4 matrix products

Tiles, reductions and the head's gradient are float32 (float64 for float64 input) whatever the dtype of the model: in
bfloat16 a log-partition near 16 moves in steps of 0.125.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF = (torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """A `Plan` says how N actions are scored: precision, tile size, and how the backward pass gets the softmax.

    Attributes:
        scale: logits are multiplied by it.
        cap: soft-cap of the logits, None for none.
        factors: dtype of the factors of matrix products.
        way: how the backward pass gets the softmax: frozen, kept or recomputed; none without a gradient.
        rows: rows of a tile.
        sample: further tokens to sample at each state.
        describe: also return entropy and arg-max hits.
    """

    scale: float
    cap: float | None
    factors: torch.dtype
    way: str
    rows: int
    sample: int
    describe: bool


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the matrix product a b in float32 (float64 for float64), also of half-precision factors."""
    return torch.mm(a, b, out_dtype=torch.float32, out=out) if a.dtype in HALF else torch.mm(a, b, out=out)


def _parts(n: int, rows: int) -> Iterator[slice]:
    """Return the slice of rows of each tile; one empty tile if there are no rows."""
    return (slice(start, min(n, start + rows)) for start in range(0, max(n, 1), rows))


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, plan: Plan, out: Tensor) -> Tensor:
    """Compute the logits of a few rows, `[n, V]`, into `out`."""
    x = _product(hidden.to(plan.factors), head.t(), out)
    if bias is not None:
        x += bias
    if plan.scale != 1.0:
        x *= plan.scale
    return x if plan.cap is None else x.div_(plan.cap).tanh_().mul_(plan.cap)


def _read(x: Tensor, p: Tensor, tokens: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """Return from a tile of logits x: the logits of tokens, these tokens, log-partitions, entropies and arg-max hits.

    The softmax of x is written to p, which may be x itself.
    """
    picked, top = x.gather(-1, tokens), x.amax(-1)
    hits = x.argmax(-1) == tokens[:, 0] if plan.describe else tokens.new_empty(0, dtype=torch.bool)
    torch.softmax(x, -1, out=p)
    # The largest p is exp(top - partition); a logsumexp would cost a tile of its own
    partition = top - p.amax(-1).log()
    entropy = partition - torch.linalg.vecdot(p, x) if plan.describe else x.new_empty(0)
    if plan.sample:
        drawn = torch.multinomial(p, plan.sample, replacement=True) if len(p) else tokens.new_empty(0, plan.sample)
        tokens, picked = torch.cat([tokens, drawn], 1), torch.cat([picked, x.gather(-1, drawn)], 1)
    return picked, tokens, partition, entropy, hits


def _weigh(p: Tensor, x: Tensor, tokens: Tensor, cap: float | None) -> Tensor:
    """Turn the softmax p into p c in place, zero at the tokens read off; with a soft-cap, x is overwritten."""
    p.scatter_(-1, tokens, 0.0)
    return p if cap is None else p.addcmul_(p, x.square_(), value=-1 / cap**2)


class _ChunkedScores(torch.autograd.Function):
    """`_ChunkedScores` scores actions tile by tile, with the hand-written gradient of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, plan: Plan) -> Any:
        n, head = len(hidden), weight.to(plan.factors)
        precise = torch.promote_types(plan.factors, torch.float32)
        kept = head.new_empty(n, len(head)) if plan.way == "kept" else None
        mean = head.new_empty(n, head.shape[1], dtype=precise) if plan.way == "frozen" else None
        apart = plan.sample > 0 or plan.describe or (plan.cap is not None and plan.way != "none")
        size = (min(n, plan.rows), len(head))
        tile = kept if kept is not None and kept.dtype == precise else head.new_empty(size, dtype=precise)
        spare = head.new_empty(size, dtype=precise) if apart else tile
        read = []
        for part in _parts(n, plan.rows):
            p = tile[part] if tile is kept else tile[: part.stop - part.start]
            x = spare[: len(p)] if apart else p
            read.append(_read(_logits(hidden[part], head, bias, plan, x), p, tokens[part], plan))
            if kept is not None or mean is not None:
                _weigh(p, x, read[-1][1], plan.cap)
            if mean is not None:
                _product(p.to(head.dtype), head, mean[part])
            elif kept is not None and tile is not kept:
                kept[part] = p
        picked, chosen, partition, entropy, hits = (torch.cat(x) for x in zip(*read, strict=True))
        ctx.plan = plan
        ctx.save_for_backward(hidden, weight, bias, chosen, picked, partition, kept, mean)
        ctx.mark_non_differentiable(chosen, entropy, hits)
        return picked, chosen, partition, entropy, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_picked: Tensor, _tokens: Any, grad_partition: Tensor, *_: Any) -> Any:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # a backward pass may run inside one
            return _gradients(ctx, grad_picked, grad_partition)


chunked_scores: Callable[..., tuple[Tensor, ...]] = _ChunkedScores.apply
"""Takes hidden `[N, D]`, weight `[V, D]`, bias `[V]` or None, tokens `[N, K]` (the action first) and a `Plan`; returns
logits `[N, K']` of these tokens and of K' - K sampled ones, the tokens, log-partitions `[N]`, entropy and hits."""


def _gradients(ctx: Any, grad_picked: Tensor, grad_partition: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients to hidden, weight, bias, tokens and plan; None where there is none."""
    hidden, weight, bias, tokens, picked, partition, kept, mean = ctx.saved_tensors
    plan, wants, d = ctx.plan, ctx.needs_input_grad, grad_partition[:, None] * ctx.plan.scale
    g = _at_tokens(grad_picked * plan.scale, d, tokens, picked, partition, plan.cap)
    h = hidden.to(plan.factors)
    to_hidden = mean * d if mean is not None else torch.empty_like(h, dtype=d.dtype) if wants[0] else None
    to_weight = torch.zeros_like(weight, dtype=d.dtype) if wants[1] else None
    to_bias = torch.zeros_like(bias, dtype=d.dtype) if wants[2] else None
    if mean is None:
        head = weight.to(plan.factors)
        whole = [(slice(None), kept)] if kept is not None else _recomputed(h, head, bias, tokens, plan)
        for part, p in whole:
            if to_hidden is not None:
                _product(p, head, to_hidden[part]).mul_(d[part])
            if to_weight is not None:
                _add_product(to_weight, p.t(), h[part] * d[part])
            if to_bias is not None:
                _add_product(to_bias[:, None], p.t(), d[part])
    for y, at in zip(tokens.t(), g.t(), strict=True):  # [N] each
        if to_hidden is not None:
            to_hidden.addcmul_(at[:, None], weight[y].to(plan.factors))
        if to_weight is not None:
            to_weight.index_add_(0, y, at[:, None] * h)
        if to_bias is not None:
            to_bias.index_add_(0, y, at)
    found = ((to_hidden, hidden), (to_weight, weight), (to_bias, bias))
    return *(x if x is None else x.to(like.dtype) for x, like in found), None, None


def _recomputed(
    h: Tensor, head: Tensor, bias: Tensor | None, tokens: Tensor, plan: Plan
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each tile and its softmax times c, computed a second time."""
    tile = head.new_empty(min(len(h), plan.rows), len(head), dtype=torch.promote_types(plan.factors, torch.float32))
    spare = tile if plan.cap is None else torch.empty_like(tile)
    for part in _parts(len(h), plan.rows):
        p, x = tile[: part.stop - part.start], spare[: part.stop - part.start]
        torch.softmax(_logits(h[part], head, bias, plan, x), -1, out=p)
        yield part, _weigh(p, x, tokens[part], plan.cap).to(plan.factors)


def _at_tokens(g: Tensor, d: Tensor, tokens: Tensor, picked: Tensor, partition: Tensor, cap: float | None) -> Tensor:
    """Return the gradient (d p + g) c to the logits read off, `[N, K]`; d p counts once for a token named twice."""
    ordered, order = tokens.sort(dim=-1, stable=True)
    again = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, order[:, 1:], ordered.diff() == 0)
    grad = torch.addcmul(g, d, (picked - partition[:, None]).exp_().masked_fill_(again, 0.0))
    return grad if cap is None else grad.mul_(1 - (picked / cap).square_())


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the matrix product a b to total, in the precision of total."""
    b = b.to(a.dtype)
    if a.dtype in HALF:
        total += _product(a, b)
    else:
        total.addmm_(a, b)
