"""Which prompts are valued, and the values of a run: given as a file, or made first and kept."""

from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from shiqrun.console import track
from shiqrun.data.encode import special_words
from shiqrun.data.module import DataSettings, Encoded, both_splits
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.evaluation.prompts import Prompt, prompt_of
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.rollout.value_file import ValueFile, read_values
from shiqrun.rollout.values import ValueSettings, estimate, key_of, set_prompt_values


def prompts_of(
    source: Source, data: DataSettings, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, context: int | None
) -> list[Prompt]:
    """The prompts of both splits, one a prompt id, in file order.

    Raises:
        InputError: a prompt that leaves no room for a completion, or whose text spells a special token.
    """
    from collections import Counter

    first: dict[str, Any] = {}
    for _, example in track(both_splits(source, data, Counter()), "reading prompts"):
        first.setdefault(example.prompt_id, example)
    room = None if context is None else context - max_new_tokens
    prompts = [prompt_of(example, tokenizer) for example in first.values()]
    specials = special_words(tokenizer)
    for prompt in prompts:
        if room is not None and len(prompt.tokens) > room:
            raise InputError(
                f"{prompt.source}: the prompt has {len(prompt.tokens)} tokens, which leaves no room for "
                f"values.max_new_tokens={max_new_tokens} in the model's context of {context}"
            )
        spelled = next((w for w in specials if any(w in str(m["content"]) for m in prompt.messages)), None)
        if spelled is not None:
            raise InputError(f"{prompt.source}: the prompt spells the special token {spelled}; take the row out")
    return prompts


def given(path: Path, reference: str, reward: Reward | None) -> dict[str, Any]:
    """The rewards of a file made by `shiqrun values`, by prompt id.

    Raises:
        InputError: it was made with another reference, or another reward than that of the run's evaluation.
    """
    header, _, _ = read_values(path)
    wanted = {"reference": reference} | ({} if reward is None else {"reward": reward.fingerprint()})
    return dict(ValueFile(path, wanted).rewards) if header else {}


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
) -> dict[str, Any]:
    """The rewards of the reference's completions, read from the cache or sampled now; ranks and jobs sample once."""
    made_with = settings.made_with(reference, reward)
    path = cache_dir / "values" / f"{key_of(made_with)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        file = ValueFile(path, made_with)
        home = next(policy.parameters()).device
        reward.to(device)
        estimate(policy.to(device), prompts, tokenizer, reward, settings, file, progress=track)
        policy.to(home)
    return dict(file.rewards)


def put(encoded: Encoded, rewards: dict[str, Any], beta: float) -> None:
    """Sets every row's Q0 at beta."""
    for rows in (encoded.train, encoded.val):
        set_prompt_values(rows, rewards, beta)
