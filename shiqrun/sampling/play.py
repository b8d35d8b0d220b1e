"""Plays episodes side by side: in every round each that goes on gets its next message."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.chat_template import Talk, render
from shiqrun.batching.encode import special_words
from shiqrun.console import track
from shiqrun.environments.bfcl.corruptions import said
from shiqrun.environments.bfcl.episode import Episode
from shiqrun.models.policy import Policy
from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.sampler import CompletionSampler, SampledCompletion
from shiqrun.settings import SamplingSettings


@dataclass
class Playing:
    """An episode and what a policy has said in it.

    Attributes:
        episode: its state.
        index: number of the episode among those of its sample.
        samples: the policy's messages, as sampled.
    """

    episode: Episode
    index: int
    samples: list[SampledCompletion] = field(default_factory=list)


class Voice(Protocol):
    """Says the next message in every one of these episodes, or gives one up."""

    def speak(self, playing: Sequence[Playing]) -> None:
        """One round."""


def play(playing: Sequence[Playing], voice: Voice) -> None:
    """Plays all to their ends; each ends after `max_steps` + 1 messages a turn at the latest."""
    for going in track(_rounds(playing), "playing episodes, rounds"):
        voice.speak(going)


def _rounds(playing: Sequence[Playing]) -> Iterator[list[Playing]]:
    while going := [p for p in playing if not p.episode.done]:
        yield going


class Script:
    """Says the reference answers: a check of everything but the policy."""

    def __init__(self) -> None:
        self._lines: dict[int, list[str]] = {}

    def speak(self, playing: Sequence[Playing]) -> None:
        """The next line of each."""
        for p in playing:
            whole = [text for calls in p.episode.sample.truth for text in said(calls, "one")]
            p.episode.say(self._lines.setdefault(id(p), whole).pop(0))


class PolicyVoice:
    """Samples the next messages from a policy.

    The dialogue is written anew by the chat template for every message, so that the policy always sees what training
    would show it. A dialogue without room for another message is given up, and one whose text spells a special
    token.

    Args:
        policy: on its device.
        tokenizer: with a chat template.
        settings: of the sampling; `max_new_tokens` are those of one message.
        tokens: of one forward pass.
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
        self.policy, self.tokenizer, self.settings, self.tokens = policy, tokenizer, settings, tokens
        self.specials = special_words(tokenizer)
        self.room = None if context is None else context - settings.max_new_tokens

    def speak(self, playing: Sequence[Playing]) -> None:
        """One message each, those of one round sampled together."""
        talks = [Talk(p.episode.messages, len(p.episode.messages), p.episode.sample.source) for p in playing]
        heads = render(talks, self.tokenizer, add_generation_prompt=True)["input_ids"]
        asked: list[tuple[Playing, Prompt]] = []
        for p, head in zip(playing, heads, strict=True):
            if self.room is not None and len(head) > self.room:
                p.episode.give_up("no room")
            elif any(word in str(m["content"]) for m in p.episode.messages for word in self.specials):
                p.episode.give_up("special token")  # the tokenizer would take it for one, and training drops such rows
            else:
                asked.append((p, _prompt(p, head)))
        sampler = CompletionSampler([prompt for _, prompt in asked], self.tokenizer, self._one_each(), self.tokens)
        for (p, _), sample in zip(asked, sampler.answers(self.policy, description=""), strict=True):
            p.samples.append(sample)
            p.episode.say(sample.text)

    def _one_each(self) -> SamplingSettings:
        names = SamplingSettings.__dataclass_fields__
        return SamplingSettings(**{name: getattr(self.settings, name) for name in names} | {"samples_per_prompt": 1})


def _prompt(p: Playing, head: Sequence[int]) -> Prompt:
    """The dialogue so far as a prompt; its name tells episodes and messages apart."""
    episode = p.episode
    name = blake2b(f"{episode.sample.id}/{p.index}/{len(p.samples)}".encode(), digest_size=8).hexdigest()
    tokens = np.array(head, np.int64)
    return Prompt(name, episode.sample.id, list(episode.messages), tokens, None, episode.sample.source)
