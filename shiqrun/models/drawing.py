"""Tokens drawn from logits by one uniform number a row: a two-level inverse CDF.

First the sums of blocks of tokens say in which block the number falls, then the tokens of that block are looked at: of
the whole vocabulary there is one exponential and one sum, and no running sum. Block sums are float32, all that comes
after them float64: a token's probability is off by some 1e-7 of itself, less than the rounding of its logit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128
"""Tokens of a block: about the square root of the vocabulary, and a whole number of vector registers."""
NUCLEUS = 64
"""Most likely tokens that are looked at first for `top_p`."""


class Drawn(NamedTuple):
    """One token a row.

    Attributes:
        tokens: `[R]` int64.
        logp: `[R]` float32, nats, under the distribution they were drawn from; 0 for the most likely token.
    """

    tokens: Tensor
    logp: Tensor


def draw(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Drawn:
    """The token of each row where the running sum of its probabilities, by token id, passes the row's uniform number.

    Args:
        logits: `[R, V]`, overwritten.
        uniforms: `[R]` in [0, 1), float64.
        temperature: of the softmax; 0 takes the most likely token, the lowest id of several.
        top_p: the smallest set of tokens with at least this probability is drawn from.
    """
    if temperature == 0:
        return Drawn(logits.argmax(-1), torch.zeros(len(logits), device=logits.device))
    scaled = logits.sub_(logits.amax(-1, keepdim=True))
    weights = (scaled if temperature == 1 else scaled.div_(temperature)).exp_()
    return _by_weight(weights, uniforms) if top_p == 1 else _in_nucleus(weights, uniforms, top_p)


def _by_weight(weights: Tensor, uniforms: Tensor) -> Drawn:
    """A token of each row, by weights `[R, V]` that need not sum to 1."""
    sums = _block_sums(weights)
    running = sums.cumsum(-1)
    total = running[:, -1:]
    point = _below(uniforms[:, None] * total, total)
    block = _passed(running, point)
    rest = point - (running - sums).gather(1, block)
    ids = block * BLOCK + torch.arange(BLOCK, device=weights.device)  # [R, BLOCK]
    last = weights.shape[1] - 1
    inside = weights.gather(1, ids.clamp(max=last)).masked_fill(ids > last, 0).double()
    running = inside.cumsum(-1)
    at = _passed(running, _below(rest, running[:, -1:]))
    return _drawn(ids.gather(1, at), inside.gather(1, at), total)


def _block_sums(weights: Tensor) -> Tensor:
    """`[R, blocks]` float64; the last block may be shorter than the others."""
    whole = weights.shape[1] // BLOCK * BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1).double()
    return sums if whole == weights.shape[1] else torch.cat([sums, weights[:, whole:].sum(-1, True).double()], 1)


def _in_nucleus(weights: Tensor, uniforms: Tensor, top_p: float) -> Drawn:
    """A token of the smallest set with at least `top_p` of the weight: its tokens in the order of their ids."""
    enough = top_p * _block_sums(weights).sum(-1, keepdim=True)
    size = min(NUCLEUS, weights.shape[1])
    while True:
        top, ids = weights.topk(size)
        above = top.double().cumsum(-1)
        if size == weights.shape[1] or bool((above[:, -1:] >= enough).all()):
            break
        size = min(8 * size, weights.shape[1])
    kept = top.double().masked_fill(above - top.double() >= enough, 0)
    ids, order = ids.sort(-1)
    kept = kept.gather(1, order)
    running = kept.cumsum(-1)
    total = running[:, -1:]
    at = _passed(running, _below(uniforms[:, None] * total, total))
    return _drawn(ids.gather(1, at), kept.gather(1, at), total)


def _below(point: Tensor, total: Tensor) -> Tensor:
    """The point, or the next number below the total where rounding has brought it there."""
    return torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))


def _passed(running: Tensor, point: Tensor) -> Tensor:
    """`[R, 1]`, the first place whose running sum is above the point: never one that adds nothing."""
    found = torch.searchsorted(running, point, right=True)
    return found.clamp_(max=running.shape[1] - 1)  # only where the weights are no numbers


def _drawn(token: Tensor, weight: Tensor, total: Tensor) -> Drawn:
    return Drawn(token.squeeze(1), (weight.log() - total.log()).squeeze(1).float())
