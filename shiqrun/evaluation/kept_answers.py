"""`KeptAnswers` keeps what the weights that a run starts from answer, so that runs from the same weights answer once.

The runs of a sweep start from one policy, which is their reference, and are evaluated on the same prompts. So the
reference's completions, and those of the policy before the first step, are the same in all of them.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

import shiqrun
from shiqrun.batching.row_keys import tokenizer_words
from shiqrun.models.model_checks import CODE, code_digest
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.sampling.sampler import CompletionSampler, SampledCompletion
from shiqrun.util.kept_facts import KeptFacts

WORTH_SECONDS = 1.0
"""Answers that took less are sampled anew by each run, so that short runs leave nothing in the cache."""
OWN_CODE = (*CODE, "sampling", "rewards", "evaluation", "settings.py")
"""What answers and their scores depend on beside the libraries: a change of it lets them be sampled anew."""
FIELDS = ("text", "ended", "reward", "log_ratio", "entropy", "cut")


@dataclass(frozen=True)
class KeptAnswers:
    """A `KeptAnswers` returns the answers of an earlier run where all that they depend on is the same.

    Attributes:
        kept: where they are.
        weights: fingerprint of the weights that the run starts from, adapters left out.
    """

    kept: KeptFacts
    weights: str

    def answers(
        self,
        who: str,
        policy: Policy,
        sampler: CompletionSampler,
        reward: Reward | None,
        make: Callable[[], list[SampledCompletion]],
    ) -> list[SampledCompletion]:
        """Return the completions that `make` would return, from an earlier run where there was one.

        Args:
            who: "reference" for its completions, "policy" for those of the policy, measured against it.
            policy: has the weights of `weights`.
            sampler: its prompts, tokenizer and settings.
            reward: by which `make` scores, None for none; one that is not repeatable lets `make` be called.
            make: samples, measures and scores.
        """
        if reward is not None and not reward.repeatable:
            return make()
        key = self._key(who, policy, sampler, reward)
        found = _read(self.kept.read(key), sampler)
        if found is not None:
            return found
        began = time.perf_counter()
        made = make()
        if time.perf_counter() - began > WORTH_SECONDS:
            self.kept.write(key, {"answers": [_facts(sample) for sample in made]})
        return made

    def _key(self, who: str, policy: Policy, sampler: CompletionSampler, reward: Reward | None) -> str:
        """Return a hash of all that the answers depend on, to the last bit."""
        device, model = policy.causal_lm.device, policy.causal_lm
        words: list[Any] = [who, self.weights, *_of_model(policy), asdict(sampler.settings), sampler.tokens]
        words += [torch.cuda.get_device_name(device) if device.type == "cuda" else torch.get_num_threads()]
        words += [device.type, torch.backends.cpu.get_cpu_capability(), torch.get_float32_matmul_precision()]
        words += [m.__version__ for m in (torch, transformers, tokenizers, np, shiqrun)] + [code_digest(OWN_CODE)]
        words += [*tokenizer_words(sampler.tokenizer), str(model.generation_config)]
        words += [None] if reward is None else [type(reward).__qualname__, reward.fingerprint(), reward.right]
        words += [getattr(reward, "batch_tokens", None)]  # changes scores by rounding alone
        words += [[p.name, p.tokens.tolist(), p.messages, p.answer, p.part] for p in sampler.prompts]
        return hashlib.blake2b(json.dumps(words, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _of_model(policy: Policy) -> list[Any]:
    """Return what a model's outputs depend on beside its weights."""
    config: Any = policy.causal_lm.config
    settings = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    adapters = {name: str(value) for name, value in getattr(policy.model, "peft_config", {}).items()}
    kinds = [type(policy.causal_lm).__qualname__, config._attn_implementation, str(policy.causal_lm.dtype)]
    return [*kinds, str(policy.autocast), settings, adapters]


def _facts(sample: SampledCompletion) -> dict[str, Any]:
    return {"tokens": sample.tokens.tolist(), **{name: getattr(sample, name) for name in FIELDS}}


def _read(found: dict[str, Any] | None, sampler: CompletionSampler) -> list[SampledCompletion] | None:
    """Return kept answers as completions of the prompts, or None where there are none."""
    if found is None:
        return None
    asked = [(prompt, k) for prompt in sampler.prompts for k in range(sampler.settings.samples_per_prompt)]
    kept: Sequence[dict[str, Any]] = found["answers"]
    return [
        SampledCompletion(
            prompt, k, tokens=np.array(facts["tokens"], np.int64), **{name: facts[name] for name in FIELDS}
        )
        for (prompt, k), facts in zip(asked, kept, strict=True)
    ]
