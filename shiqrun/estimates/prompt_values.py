"""What the reference earns on each prompt: K completions, their rewards, and from them Q0 at any beta."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt
from transformers import PreTrainedTokenizerBase

from shiqrun.estimates.value_file import Valued, ValueFile
from shiqrun.losses.soft_value import soft_value
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.sampling.prompts import Prompt, tokens_key
from shiqrun.sampling.sampler import CompletionSampler, SampledCompletion, score_completions
from shiqrun.settings import SamplingSettings

STREAM = 2
"""Apart from the streams of evaluation."""
SAMPLES_AT_ONCE = 4096
"""Completions between two writes: what a kill loses at most."""
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """Keys of `values:` in `conf/train.yaml` and `conf/values.yaml`. The temperature is 1: Q0 is the reference's own.

    Attributes:
        samples: completions of each prompt.
        max_new_tokens: tokens after which a completion is cut off.
        batch_size: completions sampled together.
        seed: of the sampling alone.
    """

    samples: Annotated[int, Gt(0)]
    max_new_tokens: Annotated[int, Gt(0)]
    batch_size: Annotated[int, Gt(0)]
    seed: Annotated[int, Ge(0)]

    def made_with(self, reference: str, reward: Reward) -> dict[str, Any]:
        """What equal values need, for `ValueFile`."""
        return {
            "reference": reference,
            "reward": reward.fingerprint(),
            "samples": self.samples,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


def key_of(made_with: dict[str, Any]) -> str:
    """A name for a file of such values."""
    return hashlib.blake2b(json.dumps(made_with, sort_keys=True).encode(), digest_size=16).hexdigest()


def asked(prompt: Prompt) -> str:
    """A name for a prompt and what its completions' rewards depend on: prompt ids of two data sets may be the same."""
    digest = hashlib.blake2b(prompt.tokens.tobytes(), digest_size=16)
    digest.update(json.dumps([prompt.name, prompt.answer], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def estimate(
    policy: Policy,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    settings: ValueSettings,
    file: ValueFile,
    *,
    progress: Progress = lambda x, _: x,
) -> int:
    """Samples, scores and keeps what the file lacks; the number of prompts that it lacked.

    Args:
        policy: the reference, on its device.
        prompts: to value; one a prompt id.
        tokenizer: of the policy.
        reward: of a completion.
        settings: see `ValueSettings`.
        file: where rewards are kept.
        progress: wraps the portions.
    """
    missing = [p for p in prompts if asked(p) not in file.rewards]
    each = max(1, SAMPLES_AT_ONCE // settings.samples)
    portions = [missing[start : start + each] for start in range(0, len(missing), each)]
    sampling = SamplingSettings(
        max_prompts=len(prompts),
        samples_per_prompt=settings.samples,
        max_new_tokens=settings.max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    for portion in progress(portions, f"values of prompts, portions of {each}"):
        sampler = CompletionSampler(portion, tokenizer, sampling, tokens=1)
        samples = score_completions(sampler.sample(policy, stream=STREAM, description=""), reward)
        file.append(_row(p, samples[n * settings.samples :][: settings.samples]) for n, p in enumerate(portion))
    return len(missing)


def _row(prompt: Prompt, samples: Sequence[SampledCompletion]) -> dict[str, Any]:
    return {
        "asked": asked(prompt),
        "prompt": prompt.messages,
        "completions": [[{"role": "assistant", "content": s.text}] for s in samples],
        "rewards": [s.reward for s in samples],
        "cut_off": sum(not s.ended for s in samples),
        **({} if prompt.answer is None else {"answer": prompt.answer}),
    }


def by_prompt(file: ValueFile, prompts: Sequence[Prompt]) -> dict[str, Valued]:
    """What is known of each prompt id."""
    return {p.prompt_id: Valued(file.rewards[asked(p)], tokens_key(p.tokens)) for p in prompts}


def soft_values(known: Mapping[str, Valued], beta: float) -> dict[str, float]:
    """Return Q0 of each prompt id at beta, reward units: beta log of the mean of exp(r / beta)."""
    return {name: soft_value(found.rewards, beta).value for name, found in known.items()}
