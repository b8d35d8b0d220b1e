"""A sampled trajectory carries its tokens, its reward, and the log-probabilities that it was sampled with.

It is the completion of a prompt, or an episode of several messages that an environment answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from shiqrun.types import Message


@dataclass(frozen=True)
class Turns:
    """The turns of a sampled episode are the policy's messages, with what the environment answered and paid.

    Attributes:
        messages: from the policy's first to its last.
        spans: (start, end) of each of the policy's messages in the trajectory's tokens; only these are actions.
        rewards: of each of the policy's messages, reward units.
        truncated: why the episode was cut off before its end; empty if it was not.

    Raises:
        ValueError: not one span and one reward for each of the policy's messages.
    """

    messages: Sequence[Message]
    spans: Sequence[tuple[int, int]]
    rewards: Sequence[float]
    truncated: str

    def __post_init__(self) -> None:
        if not len(self.spans) == len(self.rewards) == len(self.said):
            raise ValueError(f"{len(self.said)} messages, {len(self.spans)} spans, {len(self.rewards)} rewards")

    @property
    def said(self) -> list[str]:
        """Return the texts of the policy's messages."""
        return [str(m["content"]) for m in self.messages if m["role"] == "assistant"]


@dataclass(frozen=True)
class SampledTrajectory:
    """A sampled trajectory is a prompt and a completion that a policy sampled for it, with its reward.

    Attributes:
        uid: name that is unique within a run: the worker, its incarnation and a number.
        group: equal for completions of one prompt that were sampled together, next to each other.
        prompt_id: the data set's name of the prompt.
        messages: the prompt, a chat list.
        completion: text as it was scored, without stop token and special tokens; of an episode, all that was said.
        answer: what a verifier needs.
        input_ids: `[T]` int32, tokens of the prompt and of the completion.
        start: number of prompt tokens; all tokens after them are actions, or of an episode those of its spans.
        behaviour_logp: `[A]` float32, nats, under the distribution that was sampled from (temperature, top-p).
        policy_logp: `[A]` float32, nats, under the same weights at temperature 1 without top-p.
        reward: of the whole completion, reward units; falls on the last action, or of an episode each message's on its
            own last action.
        ended: whether a stop token ended the completion, or every message of an episode; else some was cut off.
        version: number of optimiser steps that made the weights which sampled it.
        temperature: of sampling.
        top_p: share of probability that was sampled from.
        source: "online".
        time: when it was scored, seconds since the epoch.
        turns: of an episode; None for the completion of a prompt.

    Raises:
        ValueError: not one log-probability of each kind for every action, or no action.
    """

    uid: str
    group: str
    prompt_id: str
    messages: Sequence[Message]
    completion: str
    answer: Any
    input_ids: np.ndarray
    start: int
    behaviour_logp: np.ndarray
    policy_logp: np.ndarray
    reward: float
    ended: bool
    version: int
    temperature: float
    top_p: float
    source: str
    time: float
    turns: Turns | None = None

    def __post_init__(self) -> None:
        actions = len(self.action_index)
        if len(self.behaviour_logp) != actions or len(self.policy_logp) != actions or actions < 1:
            raise ValueError(
                f"{self.uid}: {actions} actions, but {len(self.behaviour_logp)} and {len(self.policy_logp)} "
                "log-probabilities"
            )

    @property
    def action_index(self) -> np.ndarray:
        """Return the positions of the actions, `[A]` int32."""
        if self.turns is None:
            return np.arange(self.start, len(self.input_ids), dtype=np.int32)
        return np.array([*chain.from_iterable(range(*span) for span in self.turns.spans)], np.int32)

    @property
    def action_rewards(self) -> np.ndarray:
        """Return the reward of every action, `[A]` float32, reward units."""
        rewards = np.zeros(len(self.action_index), np.float32)
        if self.turns is None:
            rewards[-1] = self.reward
        else:
            ends = np.cumsum([end - start for start, end in self.turns.spans])
            rewards[ends - 1] = self.turns.rewards
        return rewards
