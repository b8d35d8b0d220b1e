"""Shared rows decode many completions of few prompts: whatever two completions have in common is computed once.

A prompt is read once (`shared_prompts`), and its keys and values are kept once (`shared_cache`). Completions that have
sampled the same tokens so far are one row of the model's batch until their tokens differ.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shiqrun.sampling.decoding_rows import ENDED, Advanced, Reader
from shiqrun.sampling.shared_prompts import read_once


class SharedRows:
    """Shared rows are the different token sequences of a batch of samples, each computed once.

    Args:
        model: in eval mode, under the autocast that it is to run in; its attention is by spans (`SPANNED`).
        prompts: `[T]` token ids each, longest first.
        copies: number of samples of each prompt.
        vocabulary: number that all tokens are below.

    Attributes:
        hidden: `[R, D]`, hidden state of each row's last token, from which the next tokens are sampled.
        row: `[n]` int64, the row of each remaining sample.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[np.ndarray], copies: Sequence[int], vocabulary: int
    ) -> None:
        self.reader, self.vocabulary = Reader(model), vocabulary
        device = model.device
        self.cache, self.hidden = read_once(self.reader, prompts)
        self.cache.set_rows([1] * len(prompts))
        self.lengths, self.steps = torch.tensor([len(p) for p in prompts], device=device), 0
        self.prompt = torch.arange(len(prompts), device=device)  # of each row
        self.row: Tensor = self.prompt.repeat_interleave(torch.tensor(list(copies), device=device))

    def advance(self, tokens: Tensor, ended: Tensor) -> Advanced:
        """Read the next token of every sample that has not `ended`, each `[n]`; equal continuations are one row."""
        on = None if not bool(ended.any()) else (~ended).nonzero()[:, 0]
        row, tokens = (x if on is None else x[on] for x in (self.row, tokens))
        pairs, row = torch.unique(row * self.vocabulary + tokens, return_inverse=True)
        parents, read = pairs // self.vocabulary, pairs % self.vocabulary
        rows = len(self.hidden)
        if (rows - len(parents)) * ENDED >= rows or bool((parents[1:] == parents[:-1]).any()):
            self._branch(parents)
        elif len(parents) < rows:  # few rows have ended: they stay, and read some token
            row, read = parents[row], read.new_zeros(rows).index_put((parents,), read)
        self.row = row
        self._read(read)
        return Advanced(on, row)

    def _branch(self, parents: Tensor) -> None:
        """Replace the rows by continuations of these rows, `[R]` int64 in ascending order."""
        self.prompt = self.prompt[parents]
        self.cache.branch(parents)
        self.cache.set_rows(torch.bincount(self.prompt, minlength=len(self.lengths)).tolist())

    def _read(self, tokens: Tensor) -> None:
        positions = (self.lengths[self.prompt] + self.steps)[:, None]
        given = {"input_ids": tokens[:, None], "attention_mask": None, "position_ids": positions}
        self.hidden = self.reader.run(**given, past_key_values=self.cache, shared=self.cache)[:, -1]
        self.steps += 1
