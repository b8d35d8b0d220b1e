"""An autograd function scores actions and computes the KL between two models over the vocabulary, tile by tile.

    x_iv = logits of the policy,    y_iv = logits of another model,    p = softmax(x),    u_i = sum_v p_iv (x_iv - y_iv)

    KL_i = u_i - logsumexp_v x_iv + logsumexp_v y_iv

A tile holds some rows of x and y at a time, so that no `[N, V]` tensor is kept; both are computed again in the backward
pass. The gradient to x is exact and written by hand. With d, k and g_y the upstream gradients of the log-partition, of
the KL and of the logit of a token y that was read off (`chunked_scores.py` has the rest of the notation), it is

    p_iv (d_i + k_i (x_iv - y_iv - u_i))    and g_y more at the tokens read off

No gradient flows to the other model.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shiqrun.models.chunked_scores import Plan, _add_product, _at_tokens, _logits, _parts, _product, _read
from shiqrun.models.head import Head


class States(NamedTuple):
    """A `States` holds the hidden states of N actions and the head that makes logits of them.

    Attributes:
        hidden: `[N, D]`, the body's output at the positions that predict the actions.
        head: of the same model.
    """

    hidden: Tensor
    head: Head


class _Tile(NamedTuple):
    """A `_Tile` holds some rows: their slice, the policy's logits and softmax, and the other model's logits."""

    part: slice
    x: Tensor
    p: Tensor
    y: Tensor


def _tiles(h: Tensor, head: Tensor, bias: Tensor | None, other: States, plan: Plan) -> Iterator[_Tile]:
    """Yield the tiles of N rows, with the policy's logits in them; their softmax is for the caller to write."""
    weight = other.head.weight.to(plan.factors)
    theirs = plan._replace(scale=other.head.scale, cap=other.head.cap)
    size = (min(len(h), plan.rows), len(head))
    precise = torch.promote_types(plan.factors, torch.float32)
    a, b, c = (h.new_empty(size, dtype=precise) for _ in range(3))
    for part in _parts(len(h), plan.rows):
        rows = part.stop - part.start
        x = _logits(h[part], head, bias, plan, a[:rows])
        yield _Tile(part, x, b[:rows], _logits(other.hidden[part], weight, other.head.bias, theirs, c[:rows]))


class _ScoresAgainst(torch.autograd.Function):
    """`_ScoresAgainst` scores actions and compares the policy with another model, by the module's formulas."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, other: States, plan: Plan
    ) -> Any:
        read = []
        for tile in _tiles(hidden, weight.to(plan.factors), bias, other, plan):
            picked, chosen, partition, entropy, hits = _read(tile.x, tile.p, tokens[tile.part], plan)
            theirs = tile.y.gather(-1, chosen)
            above = torch.logsumexp(tile.y, -1)
            u = torch.linalg.vecdot(tile.p, tile.x - tile.y)
            read.append((picked, chosen, partition, entropy, hits, u - partition + above, u, theirs))
        picked, chosen, partition, entropy, hits, kl, u, theirs = (torch.cat(x) for x in zip(*read, strict=True))
        ctx.plan, ctx.other = plan, other
        ctx.save_for_backward(hidden, weight, bias, chosen, picked, partition, u, theirs)
        ctx.mark_non_differentiable(chosen, entropy, hits)
        return picked, chosen, partition, entropy, hits, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_picked: Tensor, _tokens: Any, d: Tensor, _entropy: Any, _hits: Any, k: Tensor) -> Any:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # a backward pass may run inside one
            return _gradients(ctx, grad_picked, d[:, None], k[:, None])


scores_against: Callable[..., tuple[Tensor, ...]] = _ScoresAgainst.apply
"""Takes hidden `[N, D]`, weight `[V, D]`, bias `[V]` or None, tokens `[N, K]` (the action first), the `States` of the
other model and a `Plan`; returns logits `[N, K']` of these tokens and of K' - K sampled ones, the tokens,
log-partitions `[N]`, entropy, hits, and the KL from the policy to the other model `[N]`."""


def _gradients(ctx: Any, grad_picked: Tensor, d: Tensor, k: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients to hidden, weight, bias, tokens, the other model and plan; None where there is none."""
    hidden, weight, bias, tokens, picked, partition, u, theirs = ctx.saved_tensors
    plan, wants, h, head = ctx.plan, ctx.needs_input_grad, hidden.to(ctx.plan.factors), weight.to(ctx.plan.factors)
    at_tokens = d + k * (picked - theirs - u[:, None])
    g = _at_tokens(grad_picked * plan.scale, at_tokens * plan.scale, tokens, picked, partition, plan.cap)
    to_hidden = torch.empty_like(h, dtype=d.dtype) if wants[0] else None
    to_weight = torch.zeros_like(weight, dtype=d.dtype) if wants[1] else None
    to_bias = torch.zeros_like(bias, dtype=d.dtype) if wants[2] else None
    for part, x, p, y in _tiles(h, head, bias, ctx.other, plan):
        torch.softmax(x, -1, out=p)
        y.sub_(x).add_(u[part, None]).mul_(-k[part]).add_(d[part])  # d + k (x - y - u)
        p.mul_(y).scatter_(-1, tokens[part], 0.0).mul_(plan.scale)
        if plan.cap is not None:
            p.addcmul_(p, x.square_(), value=-1 / plan.cap**2)
        tile = p.to(plan.factors)
        if to_hidden is not None:
            _product(tile, head, to_hidden[part])
        if to_weight is not None:
            _add_product(to_weight, tile.t(), h[part])
        if to_bias is not None:
            to_bias += p.sum(0)
    for token, at in zip(tokens.t(), g.t(), strict=True):  # [N] each
        if to_hidden is not None:
            to_hidden.addcmul_(at[:, None], weight[token].to(plan.factors))
        if to_weight is not None:
            to_weight.index_add_(0, token, at[:, None] * h)
        if to_bias is not None:
            to_bias.index_add_(0, token, at)
    found = ((to_hidden, hidden), (to_weight, weight), (to_bias, bias))
    return *(x if x is None else x.to(like.dtype) for x, like in found), None, None, None
