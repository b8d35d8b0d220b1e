"""Episodes of environments are sampled for training: played as in an evaluation, with what a loss reads of them.

The player is that of the evaluation (`sampling.play`). Its actor here keeps the tokens and log-probabilities of every
message, samples each episode at its own temperature, and goes on in the tokens that were sampled.
"""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.chat_template import Conversation, prompt_tokens, render
from shiqrun.environments.environment import Environment, EpisodeFailed
from shiqrun.errors import InputError
from shiqrun.models.policy import Policy
from shiqrun.rollout.settings import RolloutSettings
from shiqrun.rollout.trajectory import Turns
from shiqrun.sampling.continuation import Between, tokens_between
from shiqrun.sampling.generate import Completion, sample_completions
from shiqrun.sampling.play import DialogueActor, RunningEpisode
from shiqrun.sampling.prompts import Prompt, padding_id, stop_tokens
from shiqrun.sampling.sampler import SampledCompletion, text_of
from shiqrun.types import Example

log = logging.getLogger("shiqrun")
NOT_CONTINUED = "template"
"""Why an episode is truncated whose chat template does not continue what was sampled."""


@dataclass(frozen=True)
class Tasks:
    """Tasks are what episodes are sampled of: examples of the training split, and the environment that begins them.

    Attributes:
        examples: one for each prompt id; each pass visits all of them.
        environment: not yet begun, so that it can be sent to another process, which then plays by itself.
        context: the most tokens of an episode; None for any number.
    """

    examples: Sequence[Example]
    environment: Environment
    context: int | None


Asked = Sequence[Prompt] | Tasks
"""What a policy is asked while a run samples: prompts to complete, or tasks to play."""


def playable(
    examples: Iterable[Example],
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    settings: RolloutSettings,
    context: int | None,
) -> Tasks:
    """Return the tasks that can be played: one for each prompt id whose opening leaves room for a message.

    Args:
        examples: of the training split.
        environment: that begins their episodes.
        tokenizer: with a chat template.
        settings: of sampling.
        context: the most tokens of an episode; None for any number.

    Raises:
        InputError: there is none.
    """
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.prompt_id, example)
    heads = prompt_tokens([Conversation([*e.messages], len(e.messages), e.source) for e in first.values()], tokenizer)
    room = math.inf if context is None else context - settings.max_new_tokens
    kept = [e for e, head in zip(first.values(), heads, strict=True) if len(head) <= room]
    if not kept:
        raise InputError(
            f"rollout: none of the {len(first)} training tasks leaves room for rollout.max_new_tokens="
            f"{settings.max_new_tokens} in {context} tokens; lower it, raise data.max_length, or take a model that "
            "reads more"
        )
    if len(kept) < len(first):
        log.warning("%d of %d training tasks are played; the others leave no room for a message", len(kept), len(first))
    return Tasks([replace(e, completions=[], rewards=None, sampled=None) for e in kept], environment, context)


@dataclass
class SampledEpisode(RunningEpisode):
    """A sampled episode is a running episode that keeps its tokens and their log-probabilities.

    Attributes:
        key: whole numbers that seed its messages.
        temperature: of sampling.
        tokens: of the prompt and of what was sampled and answered since, up to the policy's last message.
        spans: (start, end) of each of the policy's messages in `tokens`.
        drawn: each message as it was sampled.
        failed: why the environment could not play on, which is no fault of the policy; empty if it could.
    """

    key: Sequence[int] = ()
    temperature: float = 1.0
    tokens: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    drawn: list[Completion] = field(default_factory=list)
    failed: str = ""

    def say(self, text: str) -> None:
        """Hand the policy's next message to the environment, which may fail over it."""
        try:
            super().say(text)
        except EpisodeFailed as error:
            self.fail(str(error))
        self.failed = self.failed or self.episode.failed

    def fail(self, why: str) -> None:
        """End the episode without its environment."""
        self.done, self.failed = True, why

    def take(self, context: np.ndarray, completion: Completion) -> None:
        """Keep a message that was sampled behind this context."""
        self.tokens = [*context.tolist(), *completion.tokens.tolist()]
        self.spans.append((len(context), len(self.tokens)))
        self.drawn.append(completion)

    def talk(self) -> Conversation:
        """Return the dialogue so far as the chat template reads it."""
        return Conversation(list(self.messages), len(self.episode.opening), self.task.source)

    def turns(self) -> Turns:
        """Return what a trajectory keeps of the played episode."""
        first = len(self.episode.opening)
        last = max(i for i, m in enumerate(self.messages) if m["role"] == "assistant")
        return Turns(self.messages[first : last + 1], tuple(self.spans), tuple(self.rewards), self.truncated)


class EpisodeActor(DialogueActor):
    """An episode actor samples the messages of sampled episodes, which go on in the tokens that were sampled.

    Args:
        policy: on the device that samples.
        tokenizer: with a chat template.
        settings: of sampling.
        context: the most tokens of an episode; None for any number.

    Attributes:
        seconds: that sampling has taken, without the environment.
    """

    def __init__(
        self, policy: Policy, tokenizer: PreTrainedTokenizerBase, settings: RolloutSettings, context: int | None
    ) -> None:
        super().__init__(tokenizer, None if context is None else context - settings.max_new_tokens)
        self.policy, self.settings, self.seconds = policy, settings, 0.0
        self._stop, self._pad = stop_tokens(tokenizer, policy.causal_lm), padding_id(tokenizer)

    def contexts(self, running: Sequence[RunningEpisode]) -> Sequence[list[int] | None]:
        """Return the tokens of each dialogue; what was sampled before stands in them as it was sampled."""
        episodes = [_sampled(r) for r in running]
        begun = [r for r in episodes if r.drawn]
        heads = iter(render([r.talk() for r in episodes if not r.drawn], self.tokenizer, head=True).ids)
        rests = iter(tokens_between([r.talk() for r in begun], self.tokenizer))
        return [self._continued(r, next(rests)) if r.drawn else next(heads) for r in episodes]

    def _continued(self, r: SampledEpisode, between: Between | None) -> list[int] | None:
        if between is None:
            r.truncate(NOT_CONTINUED)
            return None
        return [*r.tokens, *([] if r.drawn[-1].ended else between.closing), *between.following]

    def completions(self, prompts: Sequence[tuple[RunningEpisode, Prompt]]) -> list[SampledCompletion]:
        """Sample a message in each episode, at its temperature, and keep its tokens in the episode."""
        playing, began = [(_sampled(r), prompt) for r, prompt in prompts], time.perf_counter()
        drawn = sample_completions(
            self.policy,
            [prompt.tokens for _, prompt in playing],
            [[*r.key, len(r.drawn)] for r, _ in playing],
            stop=self._stop,
            pad=self._pad,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=[r.temperature for r, _ in playing],
            top_p=self.settings.top_p,
            batch_size=self.settings.batch_size,
            describe=True,
            description="",
        )
        for (r, prompt), completion in zip(playing, drawn, strict=True):
            r.take(prompt.tokens, completion)
        self.seconds += time.perf_counter() - began
        return [
            SampledCompletion(prompt, r.index, text_of(c, self.tokenizer), c.tokens, c.ended)
            for (r, prompt), c in zip(playing, drawn, strict=True)
        ]


def _sampled(r: RunningEpisode) -> SampledEpisode:
    assert isinstance(r, SampledEpisode)
    return r
