"""The decoding loop reads prompts into a key-value cache, then samples one token a step for every unfinished row.

Equal prompts are read once. Rows are sorted by the length of their prompts and padded on the left; finished rows leave
the batch. Logits are computed for the last position alone, by the same head that scores actions in training.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from shiqrun.models.head import Head
from shiqrun.sampling.inverse_cdf import draw
from shiqrun.sampling.kv_cache import SPANNED, DecodingCache, Spans, can_span, spans_of

PROMPT_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Padded tokens of prompts that one forward pass reads, by device."""
ENDED = 8
"""Finished rows leave the batch when they are at least one in so many."""


class DecodingRows:
    """Decoding rows are the unfinished rows of a batch: their key-value cache, attention mask and last hidden states.

    Args:
        model: in eval mode, under the autocast that it is to run in.
        prompts: `[T]` token ids each, longest first, equal ones side by side.
        room: largest number of tokens that will be read after the prompts.

    Attributes:
        hidden: `[R, D]`, hidden state of each row's last token, from which the next token is sampled.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[np.ndarray], room: int) -> None:
        self.model, self.body, self.device = model, model.base_model, model.device
        self.takes = inspect.signature(self.body.forward).parameters
        width = len(prompts[0])
        self.first = [width - len(p) for p in prompts]
        self.length = width
        self.mask = torch.zeros(len(prompts), width + room, dtype=torch.long, device=self.device)
        for row, first in enumerate(self.first):
            self.mask[row, first:] = 1
        self.cache, self.hidden = self._read_prompts(prompts, room)
        self._set_spans()

    def _read_prompts(self, prompts: Sequence[np.ndarray], room: int) -> tuple[DecodingCache, Tensor]:
        """Read all prompts; return their key-value cache and the hidden state of their last tokens, `[R, D]`."""
        cache, last, row = None, [], 0
        for some, copies in _portions(prompts, PROMPT_TOKENS.get(self.device.type, PROMPT_TOKENS["cuda"])):
            read, width = DynamicCache(), len(some[0])
            ids = torch.from_numpy(np.stack([np.pad(p, (width - len(p), 0)) for p in some])).to(self.device)
            rows = torch.arange(row, row + sum(copies), device=self.device)
            row += len(rows)
            hidden = self._forward(ids, self.mask[rows[_starts(copies)], self.length - width : self.length], read)
            cache = cache or DecodingCache(
                len(read.layers), rows=len(prompts), columns=self.length + room, length=self.length
            )
            source = torch.arange(len(some), device=self.device).repeat_interleave(
                torch.tensor(copies, device=self.device)
            )
            cache.write_prompts(rows, source, read)
            last.append(hidden[source])
        assert cache is not None
        return cache, torch.cat(last)

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any, **options: Any) -> Tensor:
        """Read tokens `[R, T]`; return the hidden state of the last one, `[R, D]`."""
        if "position_ids" in self.takes:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        out = self.body(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, return_dict=True, **options
        )
        hidden: Tensor = out.last_hidden_state[:, -1]
        return hidden

    def _set_spans(self) -> None:
        """Recompute the spans of rows that attend together."""
        spanned = self.model.config._attn_implementation == SPANNED
        self.options: dict[str, Spans] = {"spans": spans_of(self.first, self.length)} if spanned else {}

    def read(self, tokens: Tensor) -> None:
        """Read one more token of every row, `[R]` int64; `hidden` is then that of this token."""
        self.length += 1
        self.hidden = self._forward(tokens[:, None], self.mask[:, : self.length], self.cache, **self.options)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch only, `[R]` int64 in ascending order."""
        first = [self.first[row] for row in rows.tolist()]
        self.cache.keep(rows, first[0])
        self.first, self.length = [column - first[0] for column in first], self.length - first[0]
        self.hidden, self.mask = self.hidden[rows], self.mask[rows, first[0] :]
        self._set_spans()


def _portions(prompts: Sequence[np.ndarray], tokens: int) -> Iterator[tuple[list[np.ndarray], list[int]]]:
    """Yield portions of the prompts for one forward pass each: different prompts, and how many rows each stands for."""
    some: list[np.ndarray] = []
    copies: list[int] = []
    for _, equal in groupby(prompts, key=lambda p: p.tobytes()):
        same = list(equal)
        if some and (len(some) + 1) * len(some[0]) > tokens:
            yield some, copies
            some, copies = [], []
        some.append(same[0])
        copies.append(len(same))
    yield some, copies


def _starts(copies: list[int]) -> list[int]:
    """Return the first row of each prompt, given the number of rows of each."""
    return [0, *np.cumsum(copies)[:-1].tolist()]


@dataclass(frozen=True)
class Sampling:
    """A `Sampling` holds the settings of the decoding loop: how completions are sampled and when they end.

    Attributes:
        stop: tokens that end a completion.
        max_new_tokens: largest number of tokens of a completion.
        temperature: of the softmax, for all rows, or `[R]` float64; 0 takes the most likely token.
        top_p: tokens are sampled from the smallest set with at least this probability.
        describe: also return `policy_logp`.
    """

    stop: Sequence[int]
    max_new_tokens: int
    temperature: float | np.ndarray
    top_p: float
    describe: bool = False


class DecodedTokens(NamedTuple):
    """Decoded tokens are what was sampled for a batch of rows; what follows a stop token has no meaning.

    Attributes:
        tokens: `[R, at most max_new_tokens]` int64.
        logp: of the same shape, float32, nats, log-probabilities under the distribution that was sampled from.
        policy_logp: the same under the policy itself, at temperature 1 without top-p; None where not asked for.
    """

    tokens: np.ndarray
    logp: np.ndarray
    policy_logp: np.ndarray | None


def decode(
    model: PreTrainedModel, head: Head, prompts: Sequence[np.ndarray], uniforms: np.ndarray, sampling: Sampling
) -> DecodedTokens:
    """Sample one completion for each prompt.

    Args:
        model: in eval mode, under the autocast that it is to run in.
        head: the model's output head.
        prompts: `[T]` token ids each, longest first, equal ones side by side.
        uniforms: `[R, max_new_tokens]` in [0, 1), float64.
        sampling: temperature, top-p, and when a completion ends.
    """
    rows = DecodingRows(model, prompts, sampling.max_new_tokens - 1)
    device = rows.device
    numbers, stop = (
        torch.from_numpy(uniforms).to(device),
        torch.tensor(list(sampling.stop), dtype=torch.long, device=device),
    )
    tokens = torch.zeros(numbers.shape, dtype=torch.long, device=device)
    logp = torch.zeros(numbers.shape, device=device)
    policy_logp = torch.zeros(numbers.shape, device=device) if sampling.describe else None
    temperature = temperature_on(device, sampling)
    number = torch.arange(len(prompts), device=device)  # of each remaining row among the prompts
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(sampling.max_new_tokens):
        drawn = draw(
            head.logits(rows.hidden),
            numbers[number, step],
            temperature=temperature[number] if isinstance(temperature, Tensor) else temperature,
            top_p=sampling.top_p,
            describe=sampling.describe,
        )
        tokens[number, step], logp[number, step] = drawn.tokens, drawn.logp
        if policy_logp is not None and drawn.policy_logp is not None:
            policy_logp[number, step] = drawn.policy_logp
        ended |= torch.isin(drawn.tokens, stop)
        done = int(ended.sum())
        if done == len(number) or step + 1 == sampling.max_new_tokens:
            break
        read = drawn.tokens
        if done * ENDED >= len(number):
            on = (~ended).nonzero()[:, 0]
            rows.keep(on)
            number, ended, read = number[on], ended[on], read[on]
        rows.read(read)
    steps = slice(step + 1)
    own = None if policy_logp is None else policy_logp[:, steps].cpu().numpy()
    return DecodedTokens(tokens[:, steps].cpu().numpy(), logp[:, steps].cpu().numpy(), own)


def temperature_on(device: torch.device, sampling: Sampling) -> float | Tensor:
    """Return the sampling temperature of all rows, or of each row as `[R]` on the device."""
    temperature = sampling.temperature
    return torch.from_numpy(temperature).to(device) if isinstance(temperature, np.ndarray) else temperature


@contextlib.contextmanager
def spanned_attention_in(model: PreTrainedModel) -> Iterator[None]:
    """Have the model attend by spans inside the context, if it can; its own attention is restored afterwards."""
    own = model.config._attn_implementation
    if can_span(model):
        model.set_attn_implementation(SPANNED)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@torch.no_grad()
def decode_refusal(model: PreTrainedModel) -> str | None:
    """Return why `decode` cannot be used with this model, or None if it can.

    It cannot where the model's cache has another form than keys and values, or where hidden states read with the cache
    differ from those read without.
    """
    layers = DynamicCache(config=model.config).layers
    odd = sorted({type(x).__name__ for x in layers if type(x) not in (DynamicLayer, DynamicSlidingWindowLayer)})
    if odd or getattr(model, "_is_stateful", False):
        return f"its cache is not of keys and values alone{f' ({odd[0]})' if odd else ''}"
    ids = np.arange(5) % model.config.get_text_config().vocab_size
    try:
        rows = DecodingRows(model, [ids[:3], ids[:1]], 1)
        rows.read(torch.from_numpy(ids[[3, 1]]).to(model.device))
        plain = [model.base_model(input_ids=torch.from_numpy(x)[None].to(model.device)) for x in (ids[:4], ids[:2])]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    expected = torch.cat([out.last_hidden_state[:, -1] for out in plain]).float()
    gap = float((rows.hidden.float() - expected).norm() / expected.norm())
    tolerance = 1e-3 if rows.hidden.dtype in (torch.float32, torch.float64) else 0.1
    return None if gap <= tolerance else f"its hidden states differ by {gap:.2g} where it reads from a cache"
