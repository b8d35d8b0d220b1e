"""The evaluator of episodes lets a policy play an environment, the same in training and in `shiqrun eval`."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import encode
from shiqrun.batching.rows import Rows
from shiqrun.batching.splits import DataSettings, Split, is_of, side_of, where
from shiqrun.data.source import Source
from shiqrun.environments.environment import Environment, EpisodeInfo
from shiqrun.errors import InputError
from shiqrun.evaluation.episode_metrics import episode_metrics
from shiqrun.evaluation.evaluator import EvaluationResult
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Live
from shiqrun.sampling.play import Actor, PolicyActor, RunningEpisode, ScriptedActor, begin_episodes, play
from shiqrun.sampling.prompts import padding_id
from shiqrun.sampling.sampler import CompletionSampler, SampledCompletion
from shiqrun.settings import SamplingSettings
from shiqrun.types import Example, Message
from shiqrun.util.nearest import did_you_mean

log = logging.getLogger("shiqrun")
Measure = Callable[[Sequence[SampledCompletion]], list[SampledCompletion]]
"""Adds the log-ratio and the entropy to completions."""


@dataclass(frozen=True)
class EpisodeResult:
    """An `EpisodeResult` holds a finished episode: its dialogue, rewards and numbers.

    Attributes:
        task: the `prompt_id` of its task.
        messages: the whole dialogue.
        opening: number of messages before the policy's first.
        rewards: of each message of the policy, reward units.
        truncated: why the episode was cut off before its end; empty if it was not.
        info: what the environment reports of it.
        completions: the policy's messages as sampled and measured; empty for scripted policies.
        log_ratio: sum of log pi / pi_ref over the policy's tokens, nats; None without a reference, or a token.
    """

    task: str
    messages: list[Message]
    opening: int
    rewards: list[float]
    truncated: str
    info: EpisodeInfo
    completions: list[SampledCompletion]
    log_ratio: float | None

    def row(self) -> dict[str, Any]:
        """Return the episode's row of `episodes.jsonl`."""
        row = {"id": self.task, "messages": self.messages, "rewards": self.rewards, "ended": self.truncated}
        return row | dict(self.info.record) | {"log_ratio": self.log_ratio}


@dataclass(frozen=True)
class EpisodeEvaluation:
    """An `EpisodeEvaluation` is the result of an evaluation by episodes.

    Attributes:
        metrics: by name without a prefix, see `episode_metrics`.
        played: the episodes, those of a task together.
        on_policy: drawn from the policy's own distribution, so that log-ratios are draws of a KL.
    """

    metrics: dict[str, float]
    played: list[EpisodeResult]
    on_policy: bool

    @property
    def samples(self) -> list[SampledCompletion]:
        """Return the policy's messages as they were sampled."""
        return [completion for p in self.played for completion in p.completions]

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Return the rows of `samples.jsonl`, one an episode."""
        return [
            {
                "step": step,
                "prompt_id": p.task,
                "prompt": _text(p.messages[: p.opening]),
                "completion": _text(p.messages[p.opening :]),
                "tokens": sum(len(c.tokens) for c in p.completions),
                "ended": not p.truncated,
                "reward": sum(p.rewards),
                "kl": p.log_ratio if self.on_policy else None,
                "reference_completion": None,
                "reference_reward": None,
            }
            for p in self.played
        ]


def _text(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


class EpisodeEvaluator:
    """An episode evaluator lets a policy play episodes of tasks and measures them.

    Args:
        environment: makes the environment, anew for each evaluation.
        tasks: to play.
        tokenizer: of the policy.
        settings: of the sampling; `samples_per_prompt` episodes are played of each task.
        tokens: tokens of one forward pass when messages are measured.
        context: tokens that the policy reads.
        beta: KL temperature, reward units per nat, or None.
    """

    def __init__(
        self,
        environment: Callable[[], Environment | None],
        tasks: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        *,
        tokens: int,
        context: int | None,
        beta: float | None,
    ) -> None:
        self.environment, self.tasks, self.tokenizer, self.settings = environment, tasks, tokenizer, settings
        self.tokens, self.context, self.beta = tokens, context, beta
        self.reference: Live | None = None
        self.own_tasks, self.world = list(tasks), 1

    def description(self) -> str:
        """Return a text that says what would be played, for a dry run."""
        return f"{len(self.tasks)} tasks, {self.settings.samples_per_prompt} episodes each"

    def begin(self, reference: Live | None, device: torch.device, rank: int = 0, world: int = 1) -> None:
        """Move the reference to the device and take this rank's share of the tasks."""
        self.own_tasks, self.world, self.reference = list(self.tasks[rank::world]), world, reference
        if reference is not None:
            reference.to(device)

    def run(self, policy: Policy) -> EpisodeEvaluation:
        """Let the policy play and measure its episodes; all ranks together, with the same result on each.

        Raises:
            InputError: no episode has room for a message of the policy.
        """
        actor = PolicyActor(policy, self.tokenizer, self.settings, tokens=self.tokens, context=self.context)
        played, error = list[EpisodeResult](), None
        try:
            each, measure = self.settings.samples_per_prompt, self._measure_under(policy)
            played = play_tasks(actor, self.environment, self.own_tasks, each, measure)
        except InputError as found:
            error = found
        if self.world > 1:
            shares: list[Any] = [None] * self.world
            torch.distributed.all_gather_object(shares, (played, error))
            place = {task.prompt_id: n for n, task in enumerate(self.tasks)}
            played = sorted((p for share, _ in shares for p in share), key=lambda p: place[p.task])
            error = next((found for _, found in shares if found), None)
        if error:
            raise error
        if not any(p.completions for p in played):
            raise InputError(
                f"no episode leaves room for a message of eval.max_new_tokens={self.settings.max_new_tokens} in the "
                f"policy's context of {self.context} tokens; have the data set say less at the start of an episode, or "
                "take a model that reads more"
            )
        on_policy = self.settings.temperature == 1 and self.settings.top_p == 1
        return EpisodeEvaluation(episode_metrics(played, beta=self.beta, on_policy=on_policy), played, on_policy)

    def _measure_under(self, policy: Policy) -> Measure:
        sampler = CompletionSampler([], self.tokenizer, self.settings, self.tokens)
        return lambda completions: sampler.measure(completions, policy, self.reference)

    def trajectories(self, result: EvaluationResult, most: int) -> Rows:
        """Return the first few episodes as trajectories, rendered anew by the chat template."""
        assert isinstance(result, EpisodeEvaluation)
        examples = [
            Example(
                p.messages[: p.opening],
                [p.messages[p.opening :]] if p.rewards else [],
                [p.rewards] if p.rewards else [],
                p.task,
            )
            for p in result.played[:most]
        ]
        return Rows([*encode(examples, self.tokenizer, Counter(), max_length=self.context)], padding_id(self.tokenizer))


def tasks_of(source: Source, split: Split, settings: DataSettings) -> list[Example]:
    """Return the tasks of a split, the first of each prompt id; held-out splits are the source's own or a share."""
    first: dict[str, Example] = {}
    own_validation, (side, own) = "val" in source.splits, where(split, source, settings)
    given = source.tasks(own)
    for task in given if own_validation else islice(given, settings.limit):
        if own == "train" and side_of(task.prompt_id, source, settings) != side:
            continue
        if side != "val" or is_of(split, task.prompt_id, source, settings):
            first.setdefault(task.prompt_id, task)
    return [*first.values()]


def choose_tasks(tasks: Sequence[Example], number: int, limit: int | None) -> list[Example]:
    """Return at most `number` of the first `limit` tasks, in their order; a warning says how many are left out.

    A hash of their names chooses, so that all runs play the same ones.

    Raises:
        InputError: there is none.
    """
    there = list(tasks)[:limit]
    if not there or not number:
        why = (
            "eval.max_prompts=0"
            if there
            else "no task falls to this split; raise data.val_fraction, or name the split in the data set's `splits`"
        )
        raise InputError(f"{why}; no episode would be played")
    names = [blake2b(task.prompt_id.encode(), digest_size=8).digest() for task in there]
    ranked = sorted(range(len(there)), key=names.__getitem__)[:number]
    if len(ranked) < len(tasks):
        limits = f"eval.max_prompts={number}, data.limit={'null' if limit is None else limit}"
        log.warning("%d of %d tasks are played (%s)", len(ranked), len(tasks), limits)
    return [there[i] for i in sorted(ranked)]


def expect_script(name: str, source: Source, data: str) -> None:
    """Check that the data set's environment has a scripted policy of this name.

    Raises:
        InputError: it has none; the message suggests the nearest name.
    """
    environment = source.environment()
    known = () if environment is None else environment.scripted_policies
    if name not in known:
        there = f"it has {', '.join(known)}" if known else "it has no scripted policy"
        hint = did_you_mean(name, ["model", *known]) or f", {there}; or set eval.policy=model"
        raise InputError(f"eval.policy={name}: {data} does not know it{hint}")


def evaluate_script(
    policy: str, environment: Callable[[], Environment | None], tasks: Sequence[Example]
) -> EpisodeEvaluation:
    """Let one of the environment's scripted policies play one episode of every task."""
    played = play_tasks(ScriptedActor(policy), environment, tasks, 1, list)
    return EpisodeEvaluation(episode_metrics(played, beta=None, on_policy=False), played, on_policy=False)


def play_tasks(
    actor: Actor,
    environment: Callable[[], Environment | None],
    tasks: Iterable[Example],
    each: int,
    measure: Measure,
) -> list[EpisodeResult]:
    """Play `each` episodes of every task to their ends, then measure the messages that were sampled in them."""
    made = environment()
    assert made is not None
    with made as world:
        running = begin_episodes(world, list(tasks), each)
        play(running, actor)
        measured = iter(measure([completion for r in running for completion in r.completions]))
        return [_result(r, [next(measured) for _ in r.completions]) for r in running]


def _result(r: RunningEpisode, completions: list[SampledCompletion]) -> EpisodeResult:
    info, opening = r.episode.info(), len(r.episode.opening)
    r.episode.close()
    known = [c.log_ratio for c in completions if c.log_ratio is not None]
    return EpisodeResult(
        task=r.task.prompt_id,
        messages=r.messages,
        opening=opening,
        rewards=r.rewards,
        truncated=r.truncated,
        info=info,
        completions=[replace(c, reward=reward) for c, reward in zip(completions, r.rewards, strict=False)],
        log_ratio=sum(known) if completions and len(known) == len(completions) else None,
    )
