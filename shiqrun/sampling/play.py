"""Episodes are played side by side: in every round an actor gives each unfinished episode its next message."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.chat_template import Conversation, render
from shiqrun.batching.special_tokens import special_token_texts
from shiqrun.console import track
from shiqrun.data.chats import wording
from shiqrun.environments.environment import NO_ROOM, SPECIAL_TOKEN, TOO_MANY_STEPS, Environment, Episode
from shiqrun.models.policy import Policy
from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.sampler import CompletionSampler, SampledCompletion
from shiqrun.settings import SamplingSettings
from shiqrun.types import Example, Message


@dataclass
class RunningEpisode:
    """A running episode holds the environment's side of a dialogue and what the policy has said and earned in it.

    Attributes:
        task: what the episode was begun from.
        index: number of the episode among those of its task.
        episode: the environment's side.
        max_messages: messages of the policy after which the episode is truncated, None for no limit.
        messages: the dialogue so far.
        rewards: of each message of the policy, reward units.
        completions: the policy's messages as they were sampled; empty for other actors.
        done: whether the episode is over.
        truncated: why it was cut off before its end; empty if it was not.
    """

    task: Example
    index: int
    episode: Episode
    max_messages: int | None = None
    messages: list[Message] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    completions: list[SampledCompletion] = field(default_factory=list)
    done: bool = False
    truncated: str = ""

    def __post_init__(self) -> None:
        self.messages = list(self.episode.opening)

    def say(self, text: str) -> None:
        """Hand the policy's next message to the environment and take its answer."""
        assert not self.done
        self.messages.append({"role": "assistant", "content": text})
        step = self.episode.step(text)
        self.messages += step.messages
        self.rewards.append(step.reward)
        self.done, self.truncated = step.terminated or bool(step.truncated), step.truncated
        if not self.done and len(self.rewards) == self.max_messages:
            self.truncate(TOO_MANY_STEPS)

    def truncate(self, why: str) -> None:
        """Cut the episode off before its end, for the given reason."""
        reward = self.episode.truncate(why)
        if self.rewards:
            self.rewards[-1] += reward
        self.done, self.truncated = True, why


class Actor(Protocol):
    """An actor chooses the next message of every unfinished episode, or truncates the episode."""

    def act(self, running: Sequence[RunningEpisode]) -> None:
        """Play one round: one message in each of the unfinished episodes."""


def begin_episodes(environment: Environment, tasks: Sequence[Example], each: int) -> list[RunningEpisode]:
    """Open `each` episodes of every task, those of a task side by side."""
    limit = environment.max_messages
    return [RunningEpisode(task, k, environment.begin(task), limit) for task in tasks for k in range(each)]


def play(running: Sequence[RunningEpisode], actor: Actor, description: str = "playing episodes, rounds") -> None:
    """Play all episodes, round by round, until the last is over; without a description there is no progress bar."""
    rounds = _rounds(running)
    for unfinished in track(rounds, description) if description else rounds:
        actor.act(unfinished)


def _rounds(running: Sequence[RunningEpisode]) -> Iterator[list[RunningEpisode]]:
    while unfinished := [r for r in running if not r.done]:
        yield unfinished


class ScriptedActor:
    """A scripted actor follows one of the environment's scripted policies: a check of everything but the policy.

    Args:
        policy: its name, one of `Environment.scripted_policies`.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy

    def act(self, running: Sequence[RunningEpisode]) -> None:
        """Say the scripted next message in every episode."""
        for r in running:
            r.say(r.episode.scripted_message(self.policy))


class DialogueActor(ABC):
    """A dialogue actor samples the messages of episodes, each in the context that it reads of the dialogue so far.

    A dialogue that leaves no room for another message is truncated, and so is one whose text spells a special token:
    the tokenizer would take the text for the token, and training drops such rows.

    Args:
        tokenizer: with a chat template.
        room: most tokens of a context, None for any number.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, room: int | None) -> None:
        self.tokenizer, self.room = tokenizer, room
        self.specials = special_token_texts(tokenizer)

    def act(self, running: Sequence[RunningEpisode]) -> None:
        """Sample one message for each episode, all of a round together."""
        prompts: list[tuple[RunningEpisode, Prompt]] = []
        for r, tokens in zip(running, self.contexts(running), strict=True):
            if tokens is None:
                continue
            if self.room is not None and len(tokens) > self.room:
                r.truncate(NO_ROOM)
            elif any(word in wording(m) for m in r.messages for word in self.specials):
                r.truncate(SPECIAL_TOKEN)
            else:
                prompts.append((r, _dialogue_prompt(r, tokens)))
        for (r, _), completion in zip(prompts, self.completions(prompts), strict=True):
            r.completions.append(completion)
            r.say(completion.text)

    @abstractmethod
    def contexts(self, running: Sequence[RunningEpisode]) -> Sequence[list[int] | None]:
        """Return the tokens that the policy reads before its next message; None where it has truncated an episode."""

    @abstractmethod
    def completions(self, prompts: Sequence[tuple[RunningEpisode, Prompt]]) -> list[SampledCompletion]:
        """Return the message that the policy says in each episode, in the state of its prompt."""


class PolicyActor(DialogueActor):
    """A policy actor samples the messages of episodes from a policy.

    The chat template renders the dialogue anew for every message, so that the policy always sees what training
    would show it.

    Args:
        policy: on its device.
        tokenizer: with a chat template.
        settings: of the sampling; `max_new_tokens` bounds one message.
        tokens: tokens of one forward pass.
        context: tokens that the policy reads, None for any number.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        *,
        tokens: int,
        context: int | None,
    ) -> None:
        super().__init__(tokenizer, None if context is None else context - settings.max_new_tokens)
        self.policy, self.tokens = policy, tokens
        self.settings = replace(settings, samples_per_prompt=1)

    def contexts(self, running: Sequence[RunningEpisode]) -> Sequence[list[int]]:
        """Return the tokens of each dialogue, as the chat template renders it."""
        talks = [Conversation(r.messages, len(r.messages), r.task.source) for r in running]
        return render(talks, self.tokenizer, head=True).ids

    def completions(self, prompts: Sequence[tuple[RunningEpisode, Prompt]]) -> list[SampledCompletion]:
        """Sample a message in each episode."""
        sampler = CompletionSampler([prompt for _, prompt in prompts], self.tokenizer, self.settings, self.tokens)
        return sampler.sample(self.policy, description="")


def _dialogue_prompt(r: RunningEpisode, tokens: Sequence[int]) -> Prompt:
    """Return the dialogue so far as a prompt, whose name (it seeds the sampling) is its own in the evaluation."""
    place = f"{r.task.prompt_id}/{r.index}/{len(r.completions)}"
    name = blake2b(place.encode(), digest_size=8).hexdigest()
    return Prompt(name, r.task.prompt_id, list(r.messages), np.array(tokens, np.int64), None, r.task.source)
