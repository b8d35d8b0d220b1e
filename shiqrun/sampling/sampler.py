"""`CompletionSampler` samples completions and measures their log-ratio to the reference and the policy's entropy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.batching.steps import Batches
from shiqrun.batching.stored_tokens import text_of_tokens
from shiqrun.models.attention import reads_packed
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Reference
from shiqrun.rewards.reward import Answered, Bounded, Reward
from shiqrun.sampling.endpoint import Endpoint
from shiqrun.sampling.generate import Completion, sample_completions
from shiqrun.sampling.prompts import Prompt, padding_id, stop_tokens
from shiqrun.settings import SamplingSettings


@dataclass(frozen=True)
class SampledCompletion:
    """A sampled completion answers a prompt; it was sampled from a policy, then perhaps measured and scored.

    Attributes:
        prompt: what it completes.
        index: number of the completion among those of its prompt.
        text: without stop token and special tokens, white space at both ends cut.
        tokens: `[A]` int64, as sampled, with the stop token.
        ended: whether a stop token ended it; else the limit of new tokens cut it off.
        reward: reward units, None without a reward.
        log_ratio: sum_t log pi / pi_ref over its tokens, nats, None without a reference.
        entropy: of the policy, mean over its tokens, nats, None where it was not measured.
        cut: whether the end of its text was left out for a reward model that reads no more.
    """

    prompt: Prompt
    index: int
    text: str
    tokens: np.ndarray
    ended: bool
    reward: float | None = None
    log_ratio: float | None = None
    entropy: float | None = None
    cut: bool = False

    def for_reward(self, characters: int | None = None) -> Answered:
        """Return the completion as a reward reads it, with at most so many characters of its text."""
        said = [{"role": "assistant", "content": self.text[:characters]}]
        return Answered(self.prompt.messages, said, self.prompt.answer, self.prompt.source)


class CompletionSampler:
    """A completion sampler draws completions of fixed prompts from a policy.

    Args:
        prompts: to complete.
        tokenizer: of the policy.
        settings: see `SamplingSettings`.
        tokens: tokens of one forward pass when completions are measured; bounds memory.
    """

    def __init__(
        self, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, settings: SamplingSettings, tokens: int
    ) -> None:
        self.prompts, self.tokenizer, self.settings, self.tokens = prompts, tokenizer, settings, tokens

    def sample(
        self, policy: Policy, *, stream: int = 0, description: str = "sampling", endpoint: Endpoint | None = None
    ) -> list[SampledCompletion]:
        """Sample `samples_per_prompt` completions of each prompt, those of a prompt together.

        Args:
            policy: to sample from.
            stream: number that tells independent draws for the same prompts apart.
            description: of the progress bar.
            endpoint: a server that samples in place of the policy; None to sample here.
        """
        s = self.settings
        asked = [(prompt, k) for prompt in self.prompts for k in range(s.samples_per_prompt)]
        tokens, keys = [p.tokens for p, _ in asked], [[s.seed, stream, p.key, k] for p, k in asked]
        common: dict[str, Any] = {
            "stop": stop_tokens(self.tokenizer, policy.causal_lm),
            "max_new_tokens": s.max_new_tokens,
            "temperature": s.temperature,
            "top_p": s.top_p,
        }
        if endpoint is not None:
            completions = endpoint.complete(policy, tokens, keys, **common)
        else:
            here: dict[str, Any] = {
                "pad": padding_id(self.tokenizer),
                "batch_size": s.batch_size,
                "description": description,
            }
            completions = sample_completions(policy, tokens, keys, **common, **here)
        return [
            SampledCompletion(prompt, k, text_of(c, self.tokenizer), c.tokens, c.ended)
            for (prompt, k), c in zip(asked, completions, strict=True)
        ]

    @torch.no_grad()
    def measure(
        self, samples: Sequence[SampledCompletion], policy: Policy, reference: Reference | None
    ) -> list[SampledCompletion]:
        """Return the completions with their log-ratio to the reference and the policy's entropy on their tokens."""
        if not samples:
            return []
        device, mode = next(policy.parameters()).device, policy.training
        rows = self.as_trajectories(samples).with_layout(packed=reads_packed(policy.causal_lm), device=device.type)
        policy.eval()
        found: list[dict[str, Any]] = [{} for _ in samples]
        for numbers, batch in Batches(rows, tokens=self.tokens):
            batch = batch.to(device)
            scores = policy(batch, describe=True)
            assert scores.entropy is not None
            actions = batch.action_mask.sum(-1)
            entropy = (scores.entropy.sum(-1) / actions).tolist()
            ratio = None
            if reference is not None:
                gap = (scores.logp - reference(batch).logp).masked_fill(~batch.action_mask, 0)
                ratio = gap.double().sum(-1).tolist()
            for i, row in enumerate(numbers):
                found[row] = {"entropy": entropy[i], "log_ratio": None if ratio is None else ratio[i]}
        policy.train(mode)
        return [_with(s, **values) for s, values in zip(samples, found, strict=True)]

    def as_trajectories(self, samples: Sequence[SampledCompletion]) -> Rows:
        """Return the completions as trajectories: sampled tokens are the actions, the reward falls on the last."""
        made = []
        for n, s in enumerate(samples):
            ids = np.concatenate([s.prompt.tokens, s.tokens]).astype(np.int32)
            index = np.arange(len(s.prompt.tokens), len(ids), dtype=np.int32)
            rewards = None
            if s.reward is not None:
                rewards = np.zeros(len(index), np.float32)
                rewards[-1] = s.reward
            name = s.prompt.prompt_id
            made.append(EncodedTrajectory(ids, index, rewards, name, n, s.index, s.prompt.source, name))
        return Rows(made, padding_id(self.tokenizer))


def text_of(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> str:
    """Decode a completion without its stop token and special tokens; cut white space at both ends."""
    return text_of_tokens(completion.tokens, completion.ended, tokenizer)


def score_completions(samples: Sequence[SampledCompletion], reward: Reward) -> list[SampledCompletion]:
    """Return the completions with their rewards.

    A text with more tokens than the reward model can read (odd characters may become many tokens) loses its end.
    """
    context = reward.context() if isinstance(reward, Bounded) else None
    items = [s.for_reward() for s in samples]
    long: set[int] = set()
    if isinstance(reward, Bounded) and context is not None:
        long = {i for i, length in enumerate(reward.lengths(items)) if length > context}
        for i in long:
            items[i] = _shorten(samples[i], reward, context)
    values = reward.score(items)
    return [_with(s, reward=v, cut=i in long) for i, (s, v) in enumerate(zip(samples, values, strict=True))]


def _shorten(sample: SampledCompletion, reward: Bounded, context: int) -> Answered:
    """Return the completion with as many characters as a reward model can read, found by bisection."""
    fits, more = 0, len(sample.text)
    while more - fits > 1:
        middle = (fits + more) // 2
        (length,) = reward.lengths([sample.for_reward(middle)])
        fits, more = (middle, more) if length <= context else (fits, middle)
    return sample.for_reward(fits)


def _with(sample: SampledCompletion, **values: Any) -> SampledCompletion:
    return SampledCompletion(**{**sample.__dict__, **values})
