"""`draw` samples tokens from logits by inverting the CDF: one uniform number for each row decides its token.

The token is the one at which the running sum of probabilities, in the order of token ids, passes the uniform number.
The search has two levels: sums over blocks of tokens say in which block the number falls, then the tokens of that block
are looked at. Over the whole vocabulary this takes one exponential and one sum, and no running sum. Block sums are
float32, all that comes after them float64: a token's probability is off by some 1e-7 of itself, less than the rounding
of its logit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128
"""Number of tokens in a block: about the square root of a vocabulary, and a whole number of vector registers."""
NUCLEUS = 64
"""Number of most likely tokens among which the top-p set is looked for first."""


class DrawnTokens(NamedTuple):
    """Drawn tokens are one sampled token for each row, with its log-probability.

    Attributes:
        tokens: `[R]` int64.
        logp: `[R]` float32, nats, under the distribution that was sampled from; 0 at temperature 0.
        policy_logp: `[R]` float32, nats, under the softmax of the logits, at temperature 1 without top-p; None where it
            was not asked for.
    """

    tokens: Tensor
    logp: Tensor
    policy_logp: Tensor | None = None


def draw(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | Tensor,
    top_p: float,
    describe: bool = False,
    rows: Tensor | None = None,
) -> DrawnTokens:
    """Sample one token for each uniform number by inverting a row's CDF at the number.

    Args:
        logits: `[R, V]`, overwritten.
        uniforms: `[n]` in [0, 1), float64.
        temperature: of the softmax, for all rows or `[R]`; 0 takes the most likely token, the lowest id of several.
        top_p: tokens are sampled from the smallest set with at least this probability.
        describe: also return `policy_logp`, which costs one more exponential unless temperature and top_p are 1.
        rows: `[n]` int64, the row of logits of each number; None where each row has one number.
    """
    several = isinstance(temperature, Tensor)
    greedy = temperature == 0  # bool, or [R]
    best = _most_likely(logits) if (bool(greedy.any()) if isinstance(greedy, Tensor) else greedy) else None
    if best is not None and not several:
        drawn = DrawnTokens(_of(best, rows), torch.zeros(len(uniforms), device=logits.device))
        return _with_policy_logp(drawn, _subtract_largest(logits), rows) if describe else drawn
    centred, itself = _subtract_largest(logits), not several and temperature == 1 and top_p == 1
    weights = _weights(centred, temperature, in_place=itself or not describe)
    drawn = _by_weight(weights, uniforms, rows) if top_p == 1 else _in_nucleus(weights, uniforms, top_p, rows)
    if best is not None and isinstance(greedy, Tensor):
        certain = _of(greedy, rows)
        drawn = DrawnTokens(torch.where(certain, _of(best, rows), drawn.tokens), drawn.logp.masked_fill(certain, 0))
    if not describe:
        return drawn
    return drawn._replace(policy_logp=drawn.logp) if itself else _with_policy_logp(drawn, centred, rows)


def _most_likely(logits: Tensor) -> Tensor:
    """Return the most likely token of each row, `[R]`, the lowest id of several, faster than `argmax` on a CPU."""
    blocks = logits.shape[1] // BLOCK
    if blocks < 2:
        return logits.argmax(-1)
    largest = logits[:, : blocks * BLOCK].unflatten(1, (-1, BLOCK)).amax(-1)  # [R, blocks]
    block = largest.argmax(-1, keepdim=True)
    ids = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    best: Tensor = ids.gather(1, logits.gather(1, ids).argmax(-1, keepdim=True)).squeeze(1)
    rest = logits[:, blocks * BLOCK :]
    if not rest.shape[1]:
        return best
    more = rest.amax(-1) > largest.gather(1, block).squeeze(1)
    return torch.where(more, blocks * BLOCK + rest.argmax(-1), best)


def _of(values: Tensor, rows: Tensor | None) -> Tensor:
    """Return the values of the rows that numbers belong to, `[n, ...]`."""
    return values if rows is None else values[rows]


def _at(values: Tensor, ids: Tensor, rows: Tensor | None) -> Tensor:
    """Return the values `[R, V]` of each number's row at some tokens, `[n, K]`."""
    return values.gather(1, ids) if rows is None else values[rows[:, None], ids]


def _subtract_largest(logits: Tensor) -> Tensor:
    """Subtract each row's largest logit, in place; return the logits `[R, V]`."""
    return logits.sub_(logits.amax(-1, keepdim=True))


def _weights(centred: Tensor, temperature: float | Tensor, *, in_place: bool) -> Tensor:
    """Return the weights exp(logits / temperature), `[R, V]`; those of rows at temperature 0 are not read."""
    if isinstance(temperature, Tensor):
        temperature = temperature.masked_fill(temperature == 0, 1).to(centred.dtype)[:, None]  # [R, 1]
    elif temperature == 1:
        return centred.exp_() if in_place else centred.exp()
    return (centred.div_(temperature) if in_place else centred / temperature).exp_()


def _with_policy_logp(drawn: DrawnTokens, centred: Tensor, rows: Tensor | None) -> DrawnTokens:
    """Return the tokens with their log-probabilities under the softmax of logits `[R, V]`, which are overwritten."""
    picked = _at(centred, drawn.tokens[:, None], rows).double()
    total = _of(_block_sums(centred.exp_()).sum(-1, keepdim=True), rows)
    return drawn._replace(policy_logp=(picked - total.log()).squeeze(1).float())


def _by_weight(weights: Tensor, uniforms: Tensor, rows: Tensor | None) -> DrawnTokens:
    """Sample a token for each number by weights `[R, V]`, which need not sum to 1."""
    sums = _of(_block_sums(weights), rows)
    running = sums.cumsum(-1)
    total = running[:, -1:]
    point = _below(uniforms[:, None] * total, total)
    block = _first_above(running, point)
    rest = point - (running - sums).gather(1, block)
    ids = block * BLOCK + torch.arange(BLOCK, device=weights.device)  # [n, BLOCK]
    last = weights.shape[1] - 1
    inside = _at(weights, ids.clamp(max=last), rows).masked_fill(ids > last, 0).double()
    running = inside.cumsum(-1)
    at = _first_above(running, _below(rest, running[:, -1:]))
    return _drawn_tokens(ids.gather(1, at), inside.gather(1, at), total)


def _block_sums(weights: Tensor) -> Tensor:
    """Return the sums over blocks of tokens, `[R, blocks]` float64; the last block may be shorter than the others."""
    whole = weights.shape[1] // BLOCK * BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1).double()
    return sums if whole == weights.shape[1] else torch.cat([sums, weights[:, whole:].sum(-1, True).double()], 1)


def _in_nucleus(weights: Tensor, uniforms: Tensor, top_p: float, rows: Tensor | None) -> DrawnTokens:
    """Sample a token from the smallest set with at least `top_p` of the weight, by inverting the CDF over token ids."""
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
    kept, ids = _of(kept.gather(1, order), rows), _of(ids, rows)
    running = kept.cumsum(-1)
    total = running[:, -1:]
    at = _first_above(running, _below(uniforms[:, None] * total, total))
    return _drawn_tokens(ids.gather(1, at), kept.gather(1, at), total)


def _below(point: Tensor, total: Tensor) -> Tensor:
    """Return the point of the CDF, or the largest number below the total where rounding brought the point to it."""
    return torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))


def _first_above(running: Tensor, point: Tensor) -> Tensor:
    """Return the first token whose running sum of weights exceeds the point, `[R, 1]`; its weight is never 0."""
    found = torch.searchsorted(running, point, right=True)
    return found.clamp_(max=running.shape[1] - 1)  # out of range only where weights are NaN


def _drawn_tokens(token: Tensor, weight: Tensor, total: Tensor) -> DrawnTokens:
    return DrawnTokens(token.squeeze(1), (weight.log() - total.log()).squeeze(1).float())
