"""Completions sampled from a causal language model: batched, with a KV cache, reproducible row by row.

The forward passes, the cache and the stopping are `generate` of transformers; which token is taken is decided here, by
one uniform number per row and step, so that a prompt's completion does not depend on the rows beside it but by
rounding, where a number falls on the seam of two tokens.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from shiqrun.console import track
from shiqrun.models.policy import Policy


@dataclass(frozen=True)
class Completion:
    """Tokens that a policy answered with.

    Attributes:
        tokens: `[A]` int64, with the stop token if there is one.
        ended: the last token is a stop token; else it was cut off at `max_new_tokens`.
    """

    tokens: np.ndarray
    ended: bool


class InverseCdf(LogitsProcessor):
    """Leaves each row the one token that its next uniform number picks: exact sampling as a logits processor.

    Args:
        uniforms: `[rows, steps]` in [0, 1), float64.
    """

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms, self.step = uniforms, 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """0 for the picked token, -inf for every other, `[rows, V]`."""
        below = scores.double().softmax(-1).cumsum_(-1)
        point = self.uniforms[:, self.step, None].to(below.device) * below[:, -1:]
        self.step += 1
        picked = torch.searchsorted(below, point, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(-1, picked, 0.0)


@torch.no_grad()
def sample_completions(
    policy: Policy,
    prompts: Sequence[np.ndarray],
    keys: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    pad: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
    description: str = "sampling",
) -> list[Completion]:
    """One completion a prompt, in the order given.

    Args:
        policy: on the device where to sample; its mode is put back afterwards.
        prompts: `[T]` token ids each, not empty.
        keys: whole numbers from which each row's random numbers come; equal keys and prompts give equal completions.
        stop: tokens that end a completion.
        pad: token that fills rows.
        max_new_tokens: tokens at most.
        temperature: of the softmax; 0 takes the most likely token.
        top_p: the smallest set of tokens with at least this probability is sampled from.
        batch_size: rows sampled together.
        description: shown while it lasts.
    """
    found: list[Completion | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with _sampling(policy) as model:
        for start in track(range(0, len(order), batch_size), f"{description}, batches"):
            rows = order[start : start + batch_size]
            numbers = [np.random.default_rng(keys[i]).random(max_new_tokens) for i in rows]
            tokens = _batch(
                policy,
                model,
                [prompts[i] for i in rows],
                _processors(temperature, top_p, torch.from_numpy(np.stack(numbers))),
                GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=list(stop),
                    pad_token_id=pad,
                    use_cache=True,
                ),
            )
            for i, row in zip(rows, tokens, strict=True):
                found[i] = _completion(row, stop)
    return [c for c in found if c is not None]


def _processors(temperature: float, top_p: float, uniforms: Tensor) -> list[LogitsProcessor]:
    if temperature == 0:
        return []
    warpers: list[Any] = [] if temperature == 1 else [TemperatureLogitsWarper(temperature)]
    warpers += [] if top_p == 1 else [TopPLogitsWarper(top_p)]
    return [*warpers, InverseCdf(uniforms)]


def _batch(
    policy: Policy, model: Any, prompts: list[np.ndarray], processors: list[LogitsProcessor], config: GenerationConfig
) -> np.ndarray:
    """`[rows, at most max_new_tokens]`, padded on the right."""
    width = max(map(len, prompts))
    ids = np.full((len(prompts), width), config.pad_token_id, np.int64)
    mask = np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=policy.autocast, enabled=policy.autocast is not None):
        out = model.generate(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            generation_config=config,
            logits_processor=processors,
        )
    return out[:, width:].cpu().numpy()


@contextlib.contextmanager
def _sampling(policy: Policy) -> Iterator[Any]:
    """The model in eval mode, its head as scoring has it, without generation settings of its own beside ours."""
    model, mode = policy.causal_lm, policy.training
    own, model.generation_config = model.generation_config, GenerationConfig()
    exact = model.get_output_embeddings().register_forward_hook(_in_float32)
    policy.eval()
    try:
        yield model
    finally:
        policy.train(mode)
        exact.remove()
        model.generation_config = own


def _in_float32(head: Any, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
    """Logits that autocast has rounded, once more: the samples are to be of the distribution that is scored."""
    if logits.dtype in (torch.float32, torch.float64):
        return None
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(logits.device.type, enabled=False):
        return nn.functional.linear(inputs[0].float(), head.weight.float(), bias)


def _completion(row: np.ndarray, stop: Sequence[int]) -> Completion:
    """The row up to and with its first stop token."""
    ends = np.flatnonzero(np.isin(row, list(stop)))
    return Completion(row[: ends[0] + 1] if len(ends) else row, bool(len(ends)))
