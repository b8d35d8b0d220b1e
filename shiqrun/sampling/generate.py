"""Completions sampled from a causal language model: batched, with a KV cache, reproducible row by row.

Which token is taken is decided by one uniform number per row and step, so that a prompt's completion does not depend on
the rows beside it but by rounding, where a number falls on the seam of two tokens. The loop is `decode`; models whose
cache it does not know are left to `generate` of transformers, with the same numbers.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor

from shiqrun.console import track
from shiqrun.models.head import head_of
from shiqrun.models.policy import Policy
from shiqrun.sampling.decode import Decoded, Sampling, attending_by_spans, decode, refusal, temperature_on
from shiqrun.sampling.inverse_cdf import draw

log = logging.getLogger("shiqrun")


@dataclass(frozen=True)
class Completion:
    """Tokens that a policy answered with.

    Attributes:
        tokens: `[A]` int64, with the stop token if there is one.
        ended: the last token is a stop token; else it was cut off at `max_new_tokens`.
        logp: `[A]` float32, nats, of each token under the distribution it was drawn from, temperature and top_p
            included; 0 at temperature 0.
        policy_logp: `[A]` float32, nats, of each token under the policy itself: temperature 1, no top_p. None unless
            asked for.
    """

    tokens: np.ndarray
    ended: bool
    logp: np.ndarray
    policy_logp: np.ndarray | None = None


class InverseCdf(LogitsProcessor):
    """Leaves each row the one token that its next uniform number picks: exact sampling as a logits processor.

    Args:
        uniforms: `[rows, steps]` in [0, 1), float64.
        temperature: of the softmax, of all rows or `[rows]`.
        top_p: the smallest set of tokens with at least this probability is drawn from.
        describe: keeps `policy_logp`.

    Attributes:
        logp: `[rows]` of the tokens of each step so far.
        policy_logp: the same at temperature 1 and top_p 1.
    """

    def __init__(self, uniforms: Tensor, *, temperature: float | Tensor, top_p: float, describe: bool = False) -> None:
        self.uniforms, self.temperature, self.top_p, self.describe = uniforms, temperature, top_p, describe
        self.logp: list[Tensor] = []
        self.policy_logp: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """0 for the picked token, -inf for every other, `[rows, V]`."""
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
    """One completion a prompt, in the order given.

    Args:
        policy: on the device where to sample; its mode is put back afterwards.
        prompts: `[T]` token ids each, not empty; equal ones are read once a batch.
        keys: whole numbers from which each row's random numbers come; equal keys and prompts give equal completions.
        stop: tokens that end a completion.
        pad: token that fills rows.
        max_new_tokens: tokens at most.
        temperature: of the softmax, of all prompts or one a prompt; 0 takes the most likely token.
        top_p: the smallest set of tokens with at least this probability is sampled from.
        batch_size: rows sampled together.
        description: shown while it lasts; empty for nothing.
        describe: with `policy_logp`, which costs nothing at temperature 1 and top_p 1.

    Raises:
        ValueError: a temperature that is negative or no number, or not as many as prompts.
    """
    temperatures = _temperatures(temperature, len(prompts))
    found: list[Completion | None] = [None] * len(prompts)
    whole = [np.ascontiguousarray(prompt, np.int64) for prompt in prompts]
    order = sorted(range(len(whole)), key=lambda i: (-len(whole[i]), whole[i].tobytes()))
    with _sampling(policy) as model, attending_by_spans(model):
        batch = _loop_for(policy, model, pad) if order else None
        starts = range(0, len(order), batch_size)
        for start in track(starts, f"{description}, batches") if description else starts:
            assert batch is not None
            rows = order[start : start + batch_size]
            numbers = np.stack([np.random.default_rng(keys[i]).random(max_new_tokens) for i in rows])
            with torch.autocast(model.device.type, dtype=policy.autocast, enabled=policy.autocast is not None):
                sampling = Sampling(stop, max_new_tokens, _one_or_all(temperatures[rows]), top_p, describe)
                decoded = batch([whole[i] for i in rows], numbers, sampling)
            for row, i in enumerate(rows):
                found[i] = _completion(decoded, row, stop)
    return [c for c in found if c is not None]


def _temperatures(temperature: float | Sequence[float], count: int) -> np.ndarray:
    """`[prompts]` float64."""
    given = np.asarray(temperature, np.float64)
    if given.ndim and given.shape != (count,):
        raise ValueError(f"temperature: {given.shape} given, expected one number or one for each of {count} prompts")
    if not (np.isfinite(given) & (given >= 0)).all():
        raise ValueError(f"temperature {temperature}: expected numbers that are at least 0")
    return np.broadcast_to(given, count)


def _one_or_all(temperatures: np.ndarray) -> float | np.ndarray:
    """The temperature of a batch where it is one: those cost less together."""
    return float(temperatures[0]) if (temperatures == temperatures[0]).all() else temperatures


def _loop_for(policy: Policy, model: Any, pad: int) -> Any:
    """`decode` where the model can be read by it, else `generate`, which is said once."""
    reason = refusal(model)
    if reason is None:
        head = head_of(model)
        exact = torch.promote_types(head.weight.dtype, torch.float32)  # once, not at every step
        return partial(decode, model, head._replace(weight=head.weight.to(exact)))
    _say(type(model).__name__, reason)
    return partial(_generated, model, pad)


@lru_cache
def _say(name: str, reason: str) -> None:
    log.warning("%s is sampled by generate of transformers, which is slower: %s", name, reason)


def _generated(model: Any, pad: int, prompts: list[np.ndarray], uniforms: np.ndarray, sampling: Sampling) -> Decoded:
    """What `decode` gives, by `generate`."""
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
    with _head_in_float32(model):
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
    return Decoded(out[:, width:].cpu().numpy(), torch.stack(cdf.logp, 1).cpu().numpy(), own)


@contextlib.contextmanager
def _sampling(policy: Policy) -> Iterator[Any]:
    """The model in eval mode, without generation settings of its own beside ours."""
    model, mode = policy.causal_lm, policy.training
    own, model.generation_config = model.generation_config, GenerationConfig()
    policy.eval()
    try:
        yield model
    finally:
        policy.train(mode)
        model.generation_config = own


@contextlib.contextmanager
def _head_in_float32(model: Any) -> Iterator[None]:
    """Logits that autocast has rounded, once more: the samples are to be of the distribution that is scored."""
    hook = model.get_output_embeddings().register_forward_hook(_in_float32)
    try:
        yield
    finally:
        hook.remove()


def _in_float32(head: Any, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
    if logits.dtype in (torch.float32, torch.float64):
        return None
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(logits.device.type, enabled=False):
        return nn.functional.linear(inputs[0].float(), head.weight.float(), bias)


def _completion(decoded: Decoded, row: int, stop: Sequence[int]) -> Completion:
    """The row up to and with its first stop token."""
    tokens = decoded.tokens[row]
    ends = np.flatnonzero(np.isin(tokens, list(stop)))
    length = ends[0] + 1 if len(ends) else len(tokens)
    policy_logp = None if decoded.policy_logp is None else decoded.policy_logp[row, :length]
    return Completion(tokens[:length], bool(len(ends)), decoded.logp[row, :length], policy_logp)
