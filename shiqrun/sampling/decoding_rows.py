"""Decoding rows hold the state of a batch that is being decoded: its key-value cache and last hidden states.

Equal prompts are read once. Rows are sorted by the length of their prompts and padded on the left; finished rows leave
the batch.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from shiqrun.sampling.kv_cache import SPANNED, DecodingCache, Spans, spans_of

PROMPT_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Padded tokens of prompts that one forward pass reads, by device."""
ENDED = 8
"""Finished rows leave the batch when they are at least one in so many."""


class Advanced(NamedTuple):
    """An `Advanced` says which samples of a batch go on after a step, and from which of its rows.

    Attributes:
        on: `[n]` int64, numbers of the remaining samples among those before; None for all.
        row: `[n]` int64, the row of each of them; None where each sample has the row of its own number.
    """

    on: Tensor | None
    row: Tensor | None


class Reader:
    """A reader gives tokens to the body of a causal language model and takes hidden states.

    Args:
        model: in eval mode, under the autocast that it is to run in.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.body, self.device = model, model.base_model, model.device
        self.takes = inspect.signature(self.body.forward).parameters

    def read(self, ids: Tensor, mask: Tensor, cache: Any, **options: Any) -> Tensor:
        """Read tokens `[R, T]` under a mask of all columns so far; return their hidden states, `[R, T, D]`."""
        if "position_ids" in self.takes:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        return self.run(input_ids=ids, attention_mask=mask, past_key_values=cache, **options)

    def run(self, **options: Any) -> Tensor:
        """Return the hidden states of one forward pass of the body, `[R, T, D]`."""
        hidden: Tensor = self.body(use_cache=True, return_dict=True, **options).last_hidden_state
        return hidden

    def read_prompts(self, prompts: Sequence[np.ndarray]) -> tuple[DynamicCache, Tensor]:
        """Read prompts side by side, padded on the left to the first; return their cache and all hidden states."""
        read, width = DynamicCache(), len(prompts[0])
        ids = torch.from_numpy(np.stack([np.pad(p, (width - len(p), 0)) for p in prompts])).to(self.device)
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        mask = (torch.arange(width, device=self.device) >= width - lengths[:, None]).long()
        return read, self.read(ids, mask, read)


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
        self.reader = Reader(model)
        self.model, self.device = model, model.device
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
        for some, copies in _portions(prompts, prompt_tokens(self.device)):
            rows = torch.arange(row, row + sum(copies), device=self.device)
            row += len(rows)
            read, hidden = self.reader.read_prompts(some)
            cache = cache or DecodingCache(
                len(read.layers), rows=len(prompts), columns=self.length + room, length=self.length
            )
            source = torch.arange(len(some), device=self.device).repeat_interleave(
                torch.tensor(copies, device=self.device)
            )
            cache.write_prompts(rows, source, read)
            last.append(hidden[source, -1])
        assert cache is not None
        return cache, torch.cat(last)

    def _set_spans(self) -> None:
        """Recompute the spans of rows that attend together."""
        spanned = self.model.config._attn_implementation == SPANNED
        self.options: dict[str, Spans] = {"spans": spans_of(self.first, self.length)} if spanned else {}

    def read(self, tokens: Tensor) -> None:
        """Read one more token of every row, `[R]` int64; `hidden` is then that of this token."""
        self.length += 1
        mask = self.mask[:, : self.length]
        self.hidden = self.reader.read(tokens[:, None], mask, self.cache, **self.options)[:, -1]

    def advance(self, tokens: Tensor, ended: Tensor) -> Advanced:
        """Read the tokens of all rows, `[R]`; rows that have `ended` leave when they are one in `ENDED`."""
        done, on = int(ended.sum()), None
        if done * ENDED >= len(tokens):
            on = (~ended).nonzero()[:, 0]
            self.keep(on)
            tokens = tokens[on]
        self.read(tokens)
        return Advanced(on, None)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch only, `[R]` int64 in ascending order."""
        first = [self.first[row] for row in rows.tolist()]
        self.cache.keep(rows, first[0])
        self.first, self.length = [column - first[0] for column in first], self.length - first[0]
        self.hidden, self.mask = self.hidden[rows], self.mask[rows, first[0] :]
        self._set_spans()


def prompt_tokens(device: torch.device) -> int:
    """Return how many padded tokens of prompts one forward pass reads on a device."""
    return PROMPT_TOKENS.get(device.type, PROMPT_TOKENS["cuda"])


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
