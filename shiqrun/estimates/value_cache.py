"""A run's prompts, and the rewards that estimate their values, are read from files or sampled once and cached."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.logged_data import DataSettings, Split, both_splits
from shiqrun.batching.prompt_identity import expect_same_prompt, tokens_key
from shiqrun.batching.special_tokens import special_token_texts
from shiqrun.console import track
from shiqrun.data.chats import wording
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.estimates.jsonl_cache import lock_cache
from shiqrun.estimates.prompt_values import ValueSettings, rewards_by_prompt_id, sample_missing_rewards, settings_key
from shiqrun.estimates.value_file import PromptRewards, ValueFile, read_values
from shiqrun.models.policy import Policy
from shiqrun.models.sharding import whole
from shiqrun.rewards.reward import Reward
from shiqrun.sampling.endpoint import Endpoint
from shiqrun.sampling.prompts import Prompt, prompt_of
from shiqrun.types import Example
from shiqrun.util import ranks

log = logging.getLogger("shiqrun")


def read_prompts(
    source: Source,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    context: int | None,
    *,
    key: str = "values.max_new_tokens",
) -> dict[Split, list[Prompt]]:
    """Read the prompts of each split, one per prompt id, in file order.

    Prompts of which training keeps no trajectory are left out and counted: those longer than `data.max_length` or the
    context, and those that contain the text of a special token.

    Args:
        source: the data set.
        data: how it is read.
        tokenizer: of the policy.
        max_new_tokens: tokens of a completion.
        context: tokens that the model can read; None for any number.
        key: name of the setting of `max_new_tokens`, for messages.

    Raises:
        InputError: no prompt is left, one leaves no room for a completion, or an environment answers the policy.
    """
    _expect_no_environment(source)
    first: dict[str, tuple[Split, Example]] = {}
    for split, example in track(both_splits(source, data, Counter()), "reading prompts"):
        _, before = first.setdefault(example.prompt_id, (split, example))
        if before is not example and before.messages != example.messages:
            _expect_same_prompt(before, example, tokenizer)
    specials, left_out = special_token_texts(tokenizer), Counter[str]()
    prompts: dict[Split, list[Prompt]] = {"train": [], "val": []}
    for split, example in first.values():
        prompt = prompt_of(example, tokenizer)
        why = _untrained(prompt, specials, data.max_length, context)
        if why is not None:
            left_out[why] += 1
            continue
        _expect_room(prompt, max_new_tokens, context, key)
        prompts[split].append(prompt)
    reasons, number = ", ".join(f"{n} {why}" for why, n in left_out.most_common()), sum(map(len, prompts.values()))
    if not number:
        raise InputError(f"no prompt to value: {reasons or 'the data set is empty'}; look at the data")
    if left_out:
        log.warning("%d prompts are valued; left out: %s", number, reasons)
    return prompts


def _expect_no_environment(source: Source) -> None:
    if source.environment() is not None:
        raise InputError(
            "data: an environment answers the policy, and what an episode earns is no completion's reward, so these "
            "prompts have no values"
        )


def _expect_same_prompt(one: Example, other: Example, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that two examples with one prompt_id have the same prompt, in tokens."""
    before: dict[str, tuple[str, str]] = {}
    for example in (one, other):
        key = tokens_key(prompt_of(example, tokenizer).tokens)
        expect_same_prompt(before, example.prompt_id, key, example.source)


def _untrained(prompt: Prompt, specials: list[str], max_length: int | None, context: int | None) -> str | None:
    """Return the reason for which training drops every trajectory of a prompt, or None."""
    spelled = next((w for w in specials if any(w in wording(m) for m in prompt.messages)), None)
    if spelled is not None:
        return f"the text holds the special token {spelled}"
    limit, what = max_length or context, "data.max_length" if max_length else "the model's context"
    return f"longer than {what}={limit}" if limit is not None and len(prompt.tokens) >= limit else None


def _expect_room(prompt: Prompt, max_new_tokens: int, context: int | None, key: str) -> None:
    if context is not None and len(prompt.tokens) + max_new_tokens > context:
        raise InputError(
            f"{prompt.source}: the prompt has {len(prompt.tokens)} tokens, which leaves no room for "
            f"{key}={max_new_tokens} in the model's context of {context}; lower it, or "
            "data.max_length, above which trajectories and their prompts are left out"
        )


def read_prompt_rewards(path: Path, reference: str, reward: Reward | None) -> dict[str, PromptRewards]:
    """Read the rewards of each prompt id from a file of `shiqrun values`.

    Args:
        path: `values.jsonl`.
        reference: fingerprint of the run's starting weights.
        reward: of the run's evaluation; None for any.

    Raises:
        InputError: the file was made with another reference or reward.
    """
    return read_values(path, {"reference": reference} | ({} if reward is None else {"reward": reward.fingerprint()}))


class ValuedPrompts(NamedTuple):
    """A `ValuedPrompts` holds the rewards of all prompts, and the file that stores them.

    Attributes:
        known: rewards by prompt id.
        file: the cache, which also has the completions.
        new: number of prompts that were sampled just now.
    """

    known: dict[str, PromptRewards]
    file: ValueFile
    new: int


def cached_prompt_rewards(
    policy: Policy,
    prompts: list[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    settings: ValueSettings,
    *,
    reference: str,
    cache_dir: Path,
    device: torch.device,
    endpoint: Endpoint | None = None,
) -> ValuedPrompts:
    """Return rewards of the reference's completions of prompts, from the cache or sampled once for all jobs.

    All ranks of a run call it together and share the prompts; rank 0 writes.

    Args:
        policy: the reference; afterwards it is on the device where it was before.
        prompts: to value.
        tokenizer: of the policy.
        reward: scores a completion.
        settings: see `ValueSettings`.
        reference: fingerprint of the policy's weights.
        cache_dir: directory of the caches.
        device: that samples and scores.
        endpoint: a server that samples in place of the policy, whose values have a file of their own.
    """
    made_with = settings.made_with(reference, reward) | ({} if endpoint is None else {"endpoint": endpoint.served.name})
    path = cache_dir / "values" / f"{settings_key(made_with)}.jsonl"
    with lock_cache(path, "values prompts"):
        file = _opened(path, made_with)
        home = next(policy.parameters()).device
        reward.to(device)
        with whole(policy.to(device)):  # ranks that share the weights sample without each other
            new = sample_missing_rewards(
                policy, prompts, tokenizer, reward, settings, file, endpoint=endpoint, progress=track
            )
        policy.to(home)
        file = _opened(path, made_with) if new and ranks.world() > 1 else file
    return ValuedPrompts(rewards_by_prompt_id(file, prompts), file, new)


def _opened(path: Path, made_with: dict[str, Any]) -> ValueFile:
    """Return the value file as it is on the disk; rank 0 opens it first, which makes or mends it."""
    first = ValueFile(path, made_with) if ranks.rank() == 0 else None
    ranks.barrier()
    return first or ValueFile(path, made_with)
