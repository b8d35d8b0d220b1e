"""`sample_completions` samples completions from a causal language model in batches, reproducibly row by row.

One uniform number for each row and step decides the token (`inverse_cdf`), so a prompt's completion does not depend on
the other rows of its batch, except by rounding, where a number falls on the seam of two tokens. The loop is `decode`.
Models whose cache it does not support are sampled by `generate` of transformers, from the same uniform numbers.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from shiqrun.console import track
from shiqrun.models.head import decoding_head_in, head_of
from shiqrun.models.policy import Policy
from shiqrun.sampling.decode import (
    DecodedTokens,
    Sampling,
    decode,
    spanned_attention_in,
    temperature_on,
)
from shiqrun.sampling.inverse_cdf import draw
from shiqrun.sampling.refusals import decode_refusal, share_refusal

log = logging.getLogger("shiqrun")


@dataclass(frozen=True)
class Completion:
    """A completion holds the tokens sampled for a prompt and their log-probabilities.

    Attributes:
        tokens: `[A]` int64, with the stop token if there is one.
        ended: True where the last token is a stop token; else the completion was cut off at `max_new_tokens`.
        logp: `[A]` float32, nats, log-probability of each token under the distribution that was sampled from,
            temperature and top_p included; 0 at temperature 0.
        policy_logp: `[A]` float32, nats, log-probability of each token under the policy itself, at temperature 1
            without top-p; None unless asked for.
    """

    tokens: np.ndarray
    ended: bool
    logp: np.ndarray
    policy_logp: np.ndarray | None = None


class InverseCdf(LogitsProcessor):
    """This logits processor samples by inverse CDF: it leaves each row only the token of its next uniform number.

    Args:
        uniforms: `[R, steps]` in [0, 1), float64.
        temperature: of the softmax, for all rows or `[R]`.
        top_p: tokens are sampled from the smallest set with at least this probability.
        describe: also keep `policy_logp`.

    Attributes:
        logp: for each step so far, `[R]` float32, nats, log-probabilities under the distribution that was sampled from.
        policy_logp: the same at temperature 1 without top-p.
    """

    def __init__(self, uniforms: Tensor, *, temperature: float | Tensor, top_p: float, describe: bool = False) -> None:
        self.uniforms, self.temperature, self.top_p, self.describe = uniforms, temperature, top_p, describe
        self.logp: list[Tensor] = []
        self.policy_logp: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return logits `[R, V]` that are 0 at the sampled token and -inf elsewhere."""
        uniforms = self.uniforms[:, len(self.logp)].to(scores.device)
        drawn = draw(scores.clone(), uniforms, temperature=self.temperature, top_p=self.top_p, describe=self.describe)
        self.logp.append(drawn.logp)
        if drawn.policy_logp is not None:
            self.policy_logp.append(drawn.policy_logp)
        return torch.full_like(scores, float("-inf")).scatter_(-1, drawn.tokens[:, None], 0.0)


@torch.no_grad()
def sample_completions(
    policy: Policy,
    prompts: Sequence[np.ndarray],
    keys: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    pad: int,
    max_new_tokens: int,
    temperature: float | Sequence[float],
    top_p: float,
    batch_size: int,
    description: str = "sampling",
    describe: bool = False,
) -> list[Completion]:
    """Sample one completion for each prompt, in the order of the prompts.

    Args:
        policy: on the device where to sample; it is put in eval mode, and back in its own mode afterwards.
        prompts: `[T]` token ids each, not empty; equal ones are read once a batch.
        keys: whole numbers that seed each row's uniform numbers; equal keys and prompts give equal completions.
        stop: tokens that end a completion.
        pad: token that pads rows.
        max_new_tokens: largest number of tokens of a completion.
        temperature: of the softmax, one for all prompts or one for each; 0 takes the most likely token.
        top_p: tokens are sampled from the smallest set with at least this probability.
        batch_size: rows that are sampled together.
        description: label of the progress bar; empty for no bar.
        describe: also return `policy_logp`, which costs nothing at temperature 1 and top_p 1.

    Raises:
        ValueError: a temperature is negative or not finite, or there are not as many temperatures as prompts.
    """
    temperatures = _temperatures(temperature, len(prompts))
    found: list[Completion | None] = [None] * len(prompts)
    whole = [np.ascontiguousarray(prompt, np.int64) for prompt in prompts]
    order = sorted(range(len(whole)), key=lambda i: (-len(whole[i]), whole[i].tobytes(), temperatures[i]))
    with _sampling_mode(policy) as model, spanned_attention_in(model):
        batch = _loop_for(model, pad, min(batch_size, len(order))) if order else None
        starts = range(0, len(order), batch_size)
        for start in track(starts, f"{description}, batches") if description else starts:
            assert batch is not None
            rows = order[start : start + batch_size]
            numbers = np.stack([np.random.default_rng(keys[i]).random(max_new_tokens) for i in rows])
            with torch.autocast(model.device.type, dtype=policy.autocast, enabled=policy.autocast is not None):
                sampling = Sampling(stop, max_new_tokens, _one_or_all(temperatures[rows]), top_p, describe)
                decoded = batch([whole[i] for i in rows], numbers, sampling)
            for i, completion in zip(rows, _completions(decoded, stop), strict=True):
                found[i] = completion
    return [c for c in found if c is not None]


def _temperatures(temperature: float | Sequence[float], count: int) -> np.ndarray:
    """Return one sampling temperature for each prompt, `[prompts]` float64."""
    given = np.asarray(temperature, np.float64)
    if given.ndim and given.shape != (count,):
        raise ValueError(f"temperature: {given.shape} given, expected one number or one for each of {count} prompts")
    if not (np.isfinite(given) & (given >= 0)).all():
        raise ValueError(f"temperature {temperature}: expected numbers that are at least 0")
    return np.broadcast_to(given, count)


def _one_or_all(temperatures: np.ndarray) -> float | np.ndarray:
    """Return one sampling temperature if all rows of a batch share it, which costs less, else that of each row."""
    return float(temperatures[0]) if (temperatures == temperatures[0]).all() else temperatures


def _loop_for(model: Any, pad: int, rows: int) -> Any:
    """Return `decode` where it supports the model, else a loop by `generate` of transformers, with a warning."""
    reason = decode_refusal(model)
    if reason is None:
        return partial(decode, model, head_of(model).for_decoding(rows), can_share=lambda: share_refusal(model) is None)
    _warn_once(type(model).__name__, reason)
    return partial(_generate, model, pad)


@lru_cache
def _warn_once(name: str, reason: str) -> None:
    log.warning("%s is sampled by generate of transformers, which is slower: %s", name, reason)


def _generate(
    model: Any, pad: int, prompts: list[np.ndarray], uniforms: np.ndarray, sampling: Sampling
) -> DecodedTokens:
    """Sample the completions that `decode` would, by `generate` of transformers."""
    width = max(map(len, prompts))
    ids = np.full((len(prompts), width), pad, np.int64)
    mask = np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    cdf = InverseCdf(
        torch.from_numpy(uniforms),
        temperature=temperature_on(model.device, sampling),
        top_p=sampling.top_p,
        describe=sampling.describe,
    )
    with decoding_head_in(model):
        out = model.generate(
            input_ids=torch.from_numpy(ids).to(model.device),
            attention_mask=torch.from_numpy(mask).to(model.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=list(sampling.stop),
                pad_token_id=pad,
                use_cache=True,
            ),
            logits_processor=[cdf],
        )
    own = torch.stack(cdf.policy_logp, 1).cpu().numpy() if cdf.policy_logp else None
    return DecodedTokens(out[:, width:].cpu().numpy(), torch.stack(cdf.logp, 1).cpu().numpy(), own)


@contextlib.contextmanager
def _sampling_mode(policy: Policy) -> Iterator[Any]:
    """Yield the policy's model in eval mode, with its own generation settings set aside; both are restored."""
    model, mode = policy.causal_lm, policy.training
    own, model.generation_config = model.generation_config, GenerationConfig()
    policy.eval()
    try:
        yield model
    finally:
        policy.train(mode)
        model.generation_config = own


def _completions(decoded: DecodedTokens, stop: Sequence[int]) -> Iterator[Completion]:
    """Yield the completion of each row, up to and including its first stop token."""
    stops: np.ndarray = np.isin(decoded.tokens, list(stop))
    ended = np.asarray(stops.any(axis=1))
    lengths = np.where(ended, stops.argmax(1) + 1, stops.shape[1])
    for row, length in enumerate(lengths.tolist()):
        policy_logp = None if decoded.policy_logp is None else decoded.policy_logp[row, :length]
        yield Completion(decoded.tokens[row, :length], bool(ended[row]), decoded.logp[row, :length], policy_logp)
