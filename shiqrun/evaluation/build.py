"""`build_evaluator` makes the evaluator of a policy from a data set, alike for training and for `shiqrun eval`."""

import logging
from collections.abc import Callable, Set

from transformers import PreTrainedTokenizerBase

from shiqrun.batching.source_template import tell_template
from shiqrun.batching.splits import DataSettings, Split, examples_of
from shiqrun.console import track
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.evaluation.episodes import EpisodeEvaluator, choose_tasks, tasks_of
from shiqrun.evaluation.evaluator import CompletionEvaluator, PolicyEvaluator
from shiqrun.rewards.reward import Reward
from shiqrun.sampling.endpoint import Endpoint
from shiqrun.sampling.prompts import Prompt, choose_prompts, expect_prompts, fits_reward
from shiqrun.settings import SamplingSettings

log = logging.getLogger("shiqrun")


def build_evaluator(
    source: Source,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    settings: SamplingSettings,
    *,
    name: str,
    split: Split,
    reward: Reward | None,
    beta: float | None,
    tokens: int,
    context: int | None,
    training_prompts: Callable[[], Set[str]],
    endpoint: Endpoint | None = None,
) -> PolicyEvaluator:
    """Return the evaluator of a policy: by episodes where the data set names an environment, else by completions.

    Args:
        source: the data set.
        data: its settings.
        tokenizer: of the policy.
        settings: of the sampling.
        name, split: of the data set, for messages; the split whose prompts or tasks are taken.
        reward: scores completions; an environment pays its own.
        beta: KL temperature of the regularised return, reward units per nat, or None.
        tokens: tokens of one forward pass when completions are measured.
        context: tokens that the policy reads, where known.
        training_prompts: names of the training prompts by text and by tokens, none of which is a held-out prompt.
        endpoint: a server that samples in place of the policy; None to sample here.

    Raises:
        InputError: a reward or an endpoint beside an environment, or a reward model of the validation prompts.
        NoPrompts: there is no prompt to complete.
    """
    tell_template(source, tokenizer)
    if source.environment() is not None:
        _expect_no_more_than_a_policy(name, reward, endpoint)
        tasks = choose_tasks(tasks_of(source, split, data), settings.max_prompts, data.limit)
        return EpisodeEvaluator(
            source.environment, tasks, tokenizer, settings, tokens=tokens, context=context, beta=beta
        )
    seen = frozenset[str]() if split == "train" else training_prompts()
    prompts = _prompts(source, data, tokenizer, settings, split=split, reward=reward, context=context, seen=seen)
    if reward is not None:
        if split == "train":
            log.warning("eval.split=train: a reward model of this data was trained on these prompts")
        else:
            reward.refuse_seen([p.messages for p in prompts])
        reward.fingerprint()  # loads a reward model: what is wrong with it is said before anything is sampled
    return CompletionEvaluator(prompts, tokenizer, settings, tokens=tokens, reward=reward, beta=beta, endpoint=endpoint)


def _expect_no_more_than_a_policy(name: str, reward: Reward | None, endpoint: Endpoint | None) -> None:
    """Check that episodes get neither a reward nor an endpoint; raise InputError."""
    if reward is not None:
        raise InputError(f"reward: the environment of data={name} pays its own rewards; leave it out")
    if endpoint is not None:
        raise InputError(f"endpoint.base_url: episodes of data={name} are played by the model here; leave it out")


def _prompts(
    source: Source,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    settings: SamplingSettings,
    *,
    split: Split,
    reward: Reward | None,
    context: int | None,
    seen: Set[str],
) -> list[Prompt]:
    """Return the prompts to complete, none of which is in `seen`."""
    limit = min((n for n in (data.max_length, context) if n is not None), default=None)
    prompts, left_out = choose_prompts(
        track(examples_of(source, split, data), "reading prompts"),
        tokenizer,
        number=settings.max_prompts,
        room=None if limit is None else limit - settings.max_new_tokens,
        seen=seen,
        fits=fits_reward(reward, settings.max_new_tokens),
    )
    expect_prompts(prompts, left_out, settings.max_new_tokens, split)
    return prompts
