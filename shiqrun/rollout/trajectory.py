"""One sampled trajectory, with what has to be known of the policy that acted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shiqrun.types import Message


@dataclass(frozen=True)
class Trajectory:
    """A prompt and a policy's completion of it.

    Attributes:
        uid: unique among all trajectories of a run: worker, its incarnation, number.
        group: equal for completions of one prompt that were sampled together, next to each other.
        prompt_id: the data set's.
        messages: the prompt, a chat list.
        completion: text, as it was scored: without stop token and special tokens.
        answer: whatever a verifier needs.
        input_ids: `[T]` int32, prompt and completion.
        start: tokens of the prompt; all that follow are actions.
        behaviour_logp: `[A]` float32, nats, under the distribution that was sampled from (temperature, top-p).
        policy_logp: `[A]` float32, nats, under the same weights at temperature 1 without top-p.
        reward: of the whole completion, reward units; falls on the last action.
        ended: with a stop token; else it was cut off.
        version: optimiser steps of the weights that acted.
        temperature, top_p: of the sampling.
        source: online.
        time: seconds since the epoch, when it was scored.
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
