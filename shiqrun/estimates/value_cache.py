"""Which prompts are valued, and the values of a run: given as a file, or made first and kept."""

import logging
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import special_words
from shiqrun.batching.logged_data import DataSettings, Split, both_splits
from shiqrun.console import track
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.estimates.jsonl_cache import lock_cache
from shiqrun.estimates.prompt_values import ValueSettings, by_prompt, estimate, key_of
from shiqrun.estimates.value_file import Valued, ValueFile, read_values
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.sampling.prompts import Prompt, prompt_of
from shiqrun.types import Example

log = logging.getLogger("shiqrun")


def prompts_of(
    source: Source,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    context: int | None,
    *,
    key: str = "values.max_new_tokens",
) -> dict[Split, list[Prompt]]:
    """The prompts of each split, one a prompt id, in file order; `key` names the setting of `max_new_tokens`.

    Prompts of which training keeps no trajectory are left out, and counted: longer than `data.max_length` or the
    context, or with the text of a special token.

    Raises:
        InputError: no prompt is left, one leaves no room for a completion, or the data are dialogues with functions.
    """
    if source.environment() is not None:
        raise InputError(
            "data: an environment answers the policy, and what an episode earns is no completion's reward, so these "
            "prompts have no values"
        )
    limit, what = data.max_length or context, "data.max_length" if data.max_length else "the model's context"
    first: dict[str, tuple[Split, Example]] = {}
    for split, example in track(both_splits(source, data, Counter()), "reading prompts"):
        first.setdefault(example.prompt_id, (split, example))
    specials, left_out, number = special_words(tokenizer), Counter[str](), 0
    prompts: dict[Split, list[Prompt]] = {"train": [], "val": []}
    for split, prompt in ((split, prompt_of(example, tokenizer)) for split, example in first.values()):
        spelled = next((w for w in specials if any(w in str(m["content"]) for m in prompt.messages)), None)
        if spelled is not None:
            left_out[f"the text holds the special token {spelled}"] += 1
        elif limit is not None and len(prompt.tokens) >= limit:
            left_out[f"longer than {what}={limit}"] += 1
        else:
            _expect_room(prompt, max_new_tokens, context, key)
            prompts[split].append(prompt)
            number += 1
    reasons = ", ".join(f"{n} {why}" for why, n in left_out.most_common())
    if not number:
        raise InputError(f"no prompt to value: {reasons or 'the data set is empty'}; look at the data")
    if left_out:
        log.warning("%d prompts are valued; left out: %s", number, reasons)
    return prompts


def _expect_room(prompt: Prompt, max_new_tokens: int, context: int | None, key: str) -> None:
    if context is not None and len(prompt.tokens) + max_new_tokens > context:
        raise InputError(
            f"{prompt.source}: the prompt has {len(prompt.tokens)} tokens, which leaves no room for "
            f"{key}={max_new_tokens} in the model's context of {context}; lower it, or "
            "data.max_length, above which trajectories and their prompts are left out"
        )


def given(path: Path, reference: str, reward: Reward | None) -> dict[str, Valued]:
    """What a file made by `shiqrun values` knows of each prompt id.

    Raises:
        InputError: it was made with another reference, or another reward than that of the run's evaluation.
    """
    return read_values(path, {"reference": reference} | ({} if reward is None else {"reward": reward.fingerprint()}))


class Values(NamedTuple):
    """What is known of each prompt id, the file that has it and the completions, prompts sampled just now."""

    known: dict[str, Valued]
    file: ValueFile
    new: int


def made(
    policy: Policy,
    prompts: list[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    settings: ValueSettings,
    *,
    reference: str,
    cache_dir: Path,
    device: torch.device,
) -> Values:
    """What the reference's completions earn, read from the cache or sampled now; ranks and jobs sample once.

    Args:
        policy: the reference; it is back where it was at the end.
        prompts: to value.
        tokenizer: of the policy.
        reward: of a completion.
        settings: see `ValueSettings`.
        reference: fingerprint of the policy's weights.
        cache_dir: where the file is.
        device: where to sample and to score.
    """
    made_with = settings.made_with(reference, reward)
    path = cache_dir / "values" / f"{key_of(made_with)}.jsonl"
    with lock_cache(path, "values prompts"):
        file = ValueFile(path, made_with)
        home = next(policy.parameters()).device
        reward.to(device)
        new = estimate(policy.to(device), prompts, tokenizer, reward, settings, file, progress=track)
        policy.to(home)
    return Values(by_prompt(file, prompts), file, new)
