"""A sampled trajectory carries its tokens, its reward, and the log-probabilities that it was sampled with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shiqrun.types import Message


@dataclass(frozen=True)
class SampledTrajectory:
    """A sampled trajectory is a prompt and a completion that a policy sampled for it, with its reward.

    Attributes:
        uid: name that is unique within a run: the worker, its incarnation and a number.
        group: equal for completions of one prompt that were sampled together, next to each other.
        prompt_id: the data set's name of the prompt.
        messages: the prompt, a chat list.
        completion: text as it was scored, without stop token and special tokens.
        answer: what a verifier needs.
        input_ids: `[T]` int32, tokens of the prompt and of the completion.
        start: number of prompt tokens; all tokens after them are actions.
        behaviour_logp: `[A]` float32, nats, under the distribution that was sampled from (temperature, top-p).
        policy_logp: `[A]` float32, nats, under the same weights at temperature 1 without top-p.
        reward: of the whole completion, reward units; falls on the last action.
        ended: whether the completion ended with a stop token; else it was cut off.
        version: number of optimiser steps that made the weights which sampled it.
        temperature: of sampling.
        top_p: share of probability that was sampled from.
        source: "online".
        time: when it was scored, seconds since the epoch.

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

    def __post_init__(self) -> None:
        actions = len(self.input_ids) - self.start
        if len(self.behaviour_logp) != actions or len(self.policy_logp) != actions or actions < 1:
            raise ValueError(
                f"{self.uid}: {actions} actions, but {len(self.behaviour_logp)} and {len(self.policy_logp)} "
                "log-probabilities"
            )
