"""`shiqrun pivotal` chooses the trajectories to search: it encodes them, scores them and keeps the right ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import EncodedTrajectory, encode
from shiqrun.batching.logged_data import DataSettings, examples_of
from shiqrun.batching.rows import Rows
from shiqrun.batching.selection import drop_repeated
from shiqrun.batching.steps import Batches
from shiqrun.console import track
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.estimates.pivotal_settings import PivotalSettings
from shiqrun.estimates.prefix_sampler import SearchedTrajectory
from shiqrun.models.attention import reads_packed
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Answered, Reward
from shiqrun.sampling.prompts import Prompt, padding_id, prompt_of
from shiqrun.types import Example

TOKENS = 8192
"""Tokens of one forward pass."""
JUDGED_AT_ONCE = 1024
"""Trajectories that the reward scores in one call."""


def choose_trajectories(
    source: Source,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    settings: PivotalSettings,
    reward: Reward,
    context: int | None,
) -> tuple[list[tuple[EncodedTrajectory, Example]], Counter[str]]:
    """Return the trajectories to search with their examples, and the number of others by reason.

    Of equal completions of a prompt only the first is searched.

    Args:
        source: the data set.
        data: how it is read.
        tokenizer: of the reference.
        settings: of the search.
        reward: says which completions are right.
        context: tokens that the model can read; None for any number.

    Raises:
        InputError: no trajectory is left, or the reward calls no completion right.
    """
    if reward.right is None:
        raise InputError(
            "reward: pivotal tokens are where the chance of a right answer jumps, and this reward calls none right; "
            "use one like programs, unit_tests, math_answer or exact_match"
        )
    dropped: Counter[str] = Counter()
    examples = list(track(examples_of(source, settings.split, data), "reading examples"))
    limit = min(x for x in (data.max_length, context) if x is not None) if data.max_length or context else None
    own = source.chat_template
    encoded = list(encode(examples, tokenizer, dropped, max_length=limit, train_on=data.train_on, stable=own))
    fitting = []
    for trajectory in drop_repeated(encoded, dropped):
        example = examples[trajectory.example]
        why = _misfit(trajectory, example, settings, context)
        if why is None:
            fitting.append((trajectory, example))
        else:
            dropped[why] += 1
    found = _chosen(fitting, settings, reward, dropped)
    if not found:
        reasons = ", ".join(f"{n} {why}" for why, n in dropped.most_common()) or "the split is empty"
        raise InputError(
            f"no trajectory to search: {reasons}; look at pivotal.max_new_tokens, pivotal.only and pivotal.split"
        )
    return found, dropped


def _misfit(t: EncodedTrajectory, example: Example, settings: PivotalSettings, context: int | None) -> str | None:
    """Return why a trajectory cannot be searched, or None."""
    index = t.action_index
    if len(example.completions[t.completion]) > 1 or index[-1] - index[0] + 1 != len(index):
        return "of more than one turn"
    if len(index) > settings.max_new_tokens:
        return f"longer than pivotal.max_new_tokens={settings.max_new_tokens}"
    if context is not None and index[-1] + settings.max_new_tokens > context:
        return (
            f"without room for pivotal.max_new_tokens={settings.max_new_tokens} behind a prefix in the model's context "
            f"of {context} tokens"
        )
    return None


def _chosen(
    fitting: Sequence[tuple[EncodedTrajectory, Example]],
    settings: PivotalSettings,
    reward: Reward,
    dropped: Counter[str],
) -> list[tuple[EncodedTrajectory, Example]]:
    """Return the trajectories that the reward calls right, or all, with its rewards; no more are scored than needed."""
    found: list[tuple[EncodedTrajectory, Example]] = []
    most = settings.max_trajectories or len(fitting)
    for start in track(range(0, len(fitting), JUDGED_AT_ONCE), "judging trajectories, portions"):
        part = fitting[start : start + JUDGED_AT_ONCE]
        items = [Answered(e.messages, e.completions[t.completion], e.answer, t.source) for t, e in part]
        for (trajectory, example), earned in zip(part, reward.score(items), strict=True):
            if settings.only == "right" and earned != reward.right:
                dropped["wrong"] += 1
                continue
            rewards = np.zeros(len(trajectory.action_index), np.float32)
            rewards[-1] = earned
            found.append((replace(trajectory, rewards=rewards), example))
        if len(found) >= most:
            break
    return found[:most]


@torch.no_grad()
def score_trajectories(
    policy: Policy, chosen: Sequence[tuple[EncodedTrajectory, Example]], tokenizer: PreTrainedTokenizerBase
) -> list[SearchedTrajectory]:
    """Score the chosen trajectories: return them with the log-probabilities of their actions under the reference.

    Args:
        policy: the reference, on its device.
        chosen: trajectories with their examples.
        tokenizer: of the reference.
    """
    device, mode = next(policy.parameters()).device, policy.training
    rows = Rows(
        [t for t, _ in chosen], padding_id(tokenizer), packed=reads_packed(policy.causal_lm), device=device.type
    )
    logp: dict[int, np.ndarray] = {}
    policy.eval()
    batches = Batches(rows, tokens=TOKENS)
    for numbers, batch in track(batches, "scoring trajectories, batches", total=len(batches)):
        scores = policy(batch.to(device)).logp.float().cpu().numpy()
        logp |= {row: scores[i, : rows.actions[row]] for i, row in enumerate(numbers)}
    policy.train(mode)
    prompts: dict[str, Prompt] = {}
    make = partial(_searched_trajectory, tokenizer=tokenizer, prompts=prompts)
    return [make(t, example, logp[n]) for n, (t, example) in enumerate(chosen)]


def _searched_trajectory(
    t: EncodedTrajectory,
    example: Example,
    logp: np.ndarray,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, Prompt],
) -> SearchedTrajectory:
    if example.prompt_id not in prompts:
        prompts[example.prompt_id] = prompt_of(example, tokenizer)
    assert t.rewards is not None
    said = str(example.completions[t.completion][-1]["content"])
    tokens = t.input_ids[t.action_index].astype(np.int64)
    return SearchedTrajectory(prompts[example.prompt_id], tokens, logp, said, float(t.rewards[-1]), t.source)
