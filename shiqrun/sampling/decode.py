"""The decoding loop reads prompts into a key-value cache, then samples one token a step for every unfinished row.

Rows are those of `decoding_rows`, one for each completion, or where prompts have several completions those of
`shared_rows`. Logits are computed for the last position alone, by the same head that scores actions in training.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shiqrun.models.head import Head
from shiqrun.sampling.decoding_rows import DecodingRows
from shiqrun.sampling.inverse_cdf import DrawnTokens, draw
from shiqrun.sampling.kv_cache import SPANNED, can_span
from shiqrun.sampling.shared_rows import SharedRows


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
    model: PreTrainedModel,
    head: Head,
    prompts: Sequence[np.ndarray],
    uniforms: np.ndarray,
    sampling: Sampling,
    *,
    can_share: Callable[[], bool] = lambda: False,
) -> DecodedTokens:
    """Sample one completion for each prompt.

    Args:
        model: in eval mode, under the autocast that it is to run in.
        head: the model's output head.
        prompts: `[T]` token ids each, longest first, equal ones side by side, and of these equal temperatures.
        uniforms: `[R, max_new_tokens]` in [0, 1), float64.
        sampling: temperature, top-p, and when a completion ends.
        can_share: says whether the model can share what completions have in common; asked where that would pay.
    """
    rows = _rows_for(model, head, prompts, sampling, can_share)
    device = model.device
    numbers = torch.from_numpy(uniforms).to(device)
    stop = torch.tensor(list(sampling.stop), dtype=torch.long, device=device)
    found = _Drawn(numbers, sampling.describe)
    temperature = temperature_on(device, sampling)
    number = torch.arange(len(prompts), device=device)  # of each remaining sample among the prompts
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    row = rows.row if isinstance(rows, SharedRows) else None
    for step in range(sampling.max_new_tokens):
        drawn = draw(
            head.logits(rows.hidden),
            numbers[number, step],
            temperature=_of_rows(temperature, number, row, len(rows.hidden)),
            top_p=sampling.top_p,
            describe=sampling.describe,
            rows=row,
        )
        found.put(number, step, drawn)
        ended |= torch.isin(drawn.tokens, stop)
        if bool(ended.all()) or step + 1 == sampling.max_new_tokens:
            break
        on, row = rows.advance(drawn.tokens, ended)
        if on is not None:
            number, ended = number[on], ended[on]
    return found.of_steps(step + 1)


class _Drawn:
    """Drawn tokens of all steps so far, on the device."""

    def __init__(self, numbers: Tensor, describe: bool) -> None:
        self.tokens, self.logp = (
            torch.zeros_like(numbers, dtype=torch.long),
            torch.zeros_like(numbers, dtype=torch.float),
        )
        self.policy_logp = torch.zeros_like(self.logp) if describe else None

    def put(self, number: Tensor, step: int, drawn: DrawnTokens) -> None:
        """Put what these samples drew in a step."""
        self.tokens[number, step], self.logp[number, step] = drawn.tokens, drawn.logp
        if self.policy_logp is not None and drawn.policy_logp is not None:
            self.policy_logp[number, step] = drawn.policy_logp

    def of_steps(self, steps: int) -> DecodedTokens:
        """Return what was drawn in the first steps."""
        own = None if self.policy_logp is None else self.policy_logp[:, :steps].cpu().numpy()
        return DecodedTokens(self.tokens[:, :steps].cpu().numpy(), self.logp[:, :steps].cpu().numpy(), own)


def _rows_for(
    model: PreTrainedModel,
    head: Head,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    can_share: Callable[[], bool],
) -> DecodingRows | SharedRows:
    """Return shared rows where prompts have at least two samples on average, else a row for each sample."""
    temperature = np.broadcast_to(sampling.temperature, len(prompts))
    keys = zip((p.tobytes() for p in prompts), temperature.tolist(), strict=True)
    copies = [len(list(same)) for _, same in groupby(keys)]
    if 2 * len(copies) <= len(prompts) and can_share():
        first = np.cumsum([0, *copies[:-1]])
        return SharedRows(model, [prompts[n] for n in first], copies, head.weight.shape[0])
    return DecodingRows(model, prompts, sampling.max_new_tokens - 1)


def _of_rows(temperature: float | Tensor, number: Tensor, row: Tensor | None, rows: int) -> float | Tensor:
    """Return the sampling temperature of all rows, or of each; samples of a row have the same."""
    if not isinstance(temperature, Tensor):
        return temperature
    own = temperature[number]
    return own if row is None else own.new_ones(rows).index_put((row,), own)


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
