"""The value of a prompt, Q0, is estimated from the rewards of K completions that the reference samples for it.

Q0 = beta log of the mean of exp(r / beta); the rewards are stored, so that it is known at any beta.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

from annotated_types import Ge, Gt
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.data.token_columns import token_columns
from shiqrun.estimates.value_file import PromptRewards, ValueFile
from shiqrun.losses.soft_value import soft_value
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.sampling.endpoint import Endpoint
from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.sampler import CompletionSampler, SampledCompletion, score_completions
from shiqrun.settings import SamplingSettings
from shiqrun.types import SampledTokens
from shiqrun.util import ranks

STREAM = 2
"""The stream of random numbers for prompt values; evaluation and training use others."""
DECODING = 2
"""Number of the way in which completions are computed; where it changes, rounding may change a token, so that caches
made with another number are not continued. 2: completions of a prompt share what they have in common."""
SAMPLES_AT_ONCE = 4096
"""Completions between two writes to disk: the most that a kill loses."""
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """A `ValueSettings` says how prompt values are estimated: `values:` in `conf/train.yaml` and `conf/values.yaml`.

    The sampling temperature is 1, because Q0 is an expectation under the reference.

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
        """Return the header of a cache: files with an equal header hold the same values."""
        return {
            "reference": reference,
            "reward": reward.fingerprint(),
            "samples": self.samples,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "decoding": DECODING,
        }


def settings_key(made_with: dict[str, Any]) -> str:
    """Return a hash of a cache's header, which names its file."""
    return hashlib.blake2b(json.dumps(made_with, sort_keys=True).encode(), digest_size=16).hexdigest()


def prompt_key(prompt: Prompt) -> str:
    """Return a hash of a prompt's tokens and answer, since prompt ids of two data sets may be equal."""
    digest = hashlib.blake2b(prompt.tokens.tobytes(), digest_size=16)
    digest.update(json.dumps([prompt.name, prompt.answer], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def sample_missing_rewards(
    policy: Policy,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    settings: ValueSettings,
    file: ValueFile,
    *,
    endpoint: Endpoint | None = None,
    progress: Progress = lambda x, _: x,
) -> int:
    """Sample and score completions of the prompts that the value file lacks; return the number of those prompts.

    The ranks of a run take turns at the portions, so that a completion does not depend on their number.

    Args:
        policy: the reference, on its device.
        prompts: to value, one per prompt id.
        tokenizer: of the policy.
        reward: scores a completion.
        settings: see `ValueSettings`.
        file: stores the rewards; rank 0 writes it.
        endpoint: a server that samples in place of the policy; None to sample here.
        progress: wraps the portions, to show how far it is.
    """
    missing = [p for p in prompts if prompt_key(p) not in file.rewards]
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

    def rows_of(portion: Sequence[Prompt]) -> list[dict[str, Any]]:
        sampler = CompletionSampler(portion, tokenizer, sampling, tokens=1)
        samples = score_completions(sampler.sample(policy, stream=STREAM, description="", endpoint=endpoint), reward)
        return [_row(p, samples[n * settings.samples :][: settings.samples]) for n, p in enumerate(portion)]

    at_once = [portions[start : start + ranks.world()] for start in range(0, len(portions), ranks.world())]
    for shares in progress(at_once, f"values of prompts, portions of {each * ranks.world()}"):
        mine = [row for portion in shares[ranks.rank() :][:1] for row in rows_of(portion)]
        rows = ranks.gather_objects(mine)
        if ranks.rank() == 0:
            file.append(chain(*rows))
    return len(missing)


def _row(prompt: Prompt, samples: Sequence[SampledCompletion]) -> dict[str, Any]:
    return {
        "asked": prompt_key(prompt),
        "prompt": prompt.messages,
        "completions": [[{"role": "assistant", "content": s.text}] for s in samples],
        "rewards": [s.reward for s in samples],
        "cut_off": sum(not s.ended for s in samples),
        **token_columns(
            [SampledTokens(prompt.tokens.tolist(), s.tokens.tolist(), s.ended) for s in samples], several=True
        ),
        **({} if prompt.answer is None else {"answer": prompt.answer}),
    }


def rewards_by_prompt_id(file: ValueFile, prompts: Sequence[Prompt]) -> dict[str, PromptRewards]:
    """Return the stored rewards of each prompt, by prompt id."""
    return {p.prompt_id: PromptRewards(file.rewards[prompt_key(p)], tokens_key(p.tokens)) for p in prompts}


def soft_values(known: Mapping[str, PromptRewards], beta: float) -> dict[str, float]:
    """Return the soft value Q0 = beta log mean exp(r / beta) of each prompt id, in reward units."""
    return {name: soft_value(found.rewards, beta).value for name, found in known.items()}
