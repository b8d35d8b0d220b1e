"""A worker samples completions of training prompts from a copy of the policy and scores them with the reward."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from shiqrun.errors import TrainingError
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.rollout.engine import Weights
from shiqrun.rollout.settings import ONLINE, RolloutSettings
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.sampling.generate import Completion, sample_completions
from shiqrun.sampling.prompts import Prompt, padding_id, stop_tokens
from shiqrun.sampling.sampler import SampledCompletion, score_completions, text_of

STREAM = 5
"""The stream of random numbers for sampling during training; evaluation and estimates use others."""
Found = TypeVar("Found")


class Worker(ABC):
    """A worker samples trajectories; the draws depend on seed, place, incarnation and trajectory number alone.

    Args:
        policy: the worker's own copy, on the device that samples.
        tokenizer: of the policy.
        settings: of sampling.
        seed: of the run.
        place: number of this worker among all workers.
        incarnation: how often this worker was started again.
        number: trajectories that it has sampled before.

    Attributes:
        failed: number of episodes that were dropped because their environment could not play on.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        settings: RolloutSettings,
        *,
        seed: int,
        place: int = 0,
        incarnation: int = 0,
        number: int = 0,
    ) -> None:
        self.policy, self.tokenizer = policy, tokenizer
        self.settings, self.number, self.version = settings, number, 0
        self.name, self._stream = f"w{place}-{incarnation}", [seed, STREAM, place, incarnation]
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # of the prompts, in a pass
        self.seconds = {"sampling": 0.0, "rewards": 0.0}
        self.failed = 0

    def load(self, version: int, weights: Weights) -> int:
        """Copy these weights into the worker's policy, and return their size in bytes.

        Args:
            version: number of optimiser steps that made them.
            weights: of the policy; where ranks share the weights, the rows that this one holds.
        """
        own = dict(self.policy.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                p = own[name]
                (p.to_local() if isinstance(p, DTensor) else p).copy_(value)
        self.version = version
        return sum(value.nbytes for value in weights.values())

    def sample(self, n: int) -> list[SampledTrajectory]:
        """Sample and score the next n trajectories, `samples_per_prompt` of each prompt next to each other.

        Raises:
            TrainingError: the reward gave no answer in time, or no episode could be played.
        """
        made = self.sample_numbers(range(self.number, self.number + n))
        self.number += n
        return made

    @abstractmethod
    def sample_numbers(self, numbers: Sequence[int]) -> list[SampledTrajectory]:
        """Sample and score the trajectories of these numbers, whichever were sampled before; see `sample`."""

    def close(self) -> None:  # noqa: B027 - a hook that only workers with an environment need
        """End the processes that the worker has started."""

    def _place(self, group: int, count: int) -> int:
        """Return which of so many prompts a group answers; every pass visits all of them, in an order of its own."""
        passed, place = divmod(group, count)
        if self._order[0] != passed:
            order = np.random.default_rng([*self._stream, 1, passed]).permutation(count)
            self._order = (passed, order)
        return int(self._order[1][place])

    def _temperature(self, group: int) -> float:
        """Return the sampling temperature of a group, drawn uniformly between the bounds of the settings."""
        low, high = self.settings.temperature
        return low + (high - low) * float(np.random.default_rng([*self._stream, 2, group]).random())


class RolloutWorker(Worker):
    """A rollout worker samples completions of prompts, and scores them by a reward.

    Args:
        policy, tokenizer, settings, seed, place, incarnation, number: see `Worker`.
        prompts: of the training split; each pass visits all of them, in an order of its own.
        reward: scores a completion.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        reward: Reward,
        settings: RolloutSettings,
        *,
        seed: int,
        place: int = 0,
        incarnation: int = 0,
        number: int = 0,
    ) -> None:
        counted = {"seed": seed, "place": place, "incarnation": incarnation, "number": number}
        super().__init__(policy, tokenizer, settings, **counted)
        self.prompts, self.reward = prompts, reward
        self._stop, self._pad = stop_tokens(tokenizer, policy.causal_lm), padding_id(tokenizer)

    def sample_numbers(self, numbers: Sequence[int]) -> list[SampledTrajectory]:
        """Sample and score the completions of these numbers; see `Worker`.

        Raises:
            TrainingError: the reward gave no answer in time.
        """
        s, began = self.settings, time.perf_counter()
        groups = [number // s.samples_per_prompt for number in numbers]
        prompts = [self.prompts[self._place(group, len(self.prompts))] for group in groups]
        temperatures = [self._temperature(group) for group in groups]
        completions = self._complete(numbers, prompts, temperatures)
        sampled = time.perf_counter()
        samples = [
            SampledCompletion(prompt, k % s.samples_per_prompt, text_of(c, self.tokenizer), c.tokens, c.ended)
            for k, prompt, c in zip(numbers, prompts, completions, strict=True)
        ]
        scored = self.score(samples)
        self.seconds["sampling"] += sampled - began
        self.seconds["rewards"] += time.perf_counter() - sampled
        made = zip(numbers, groups, scored, completions, temperatures, strict=True)
        return [self._trajectory(*parts) for parts in made]

    def _complete(
        self, numbers: Sequence[int], prompts: Sequence[Prompt], temperatures: Sequence[float]
    ) -> list[Completion]:
        """Sample a completion of each prompt, for the trajectories of these numbers; with `policy_logp`."""
        return sample_completions(
            self.policy,
            [prompt.tokens for prompt in prompts],
            [[*self._stream, number] for number in numbers],
            stop=self._stop,
            pad=self._pad,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=temperatures,
            top_p=self.settings.top_p,
            batch_size=self.settings.batch_size,
            describe=True,
            description="",
        )

    def score(self, samples: Sequence[SampledCompletion]) -> list[SampledCompletion]:
        """Return the completions with their rewards.

        Raises:
            TrainingError: the reward gave no answer in time.
        """
        seconds, name = self.settings.reward_timeout, self.reward.about().get("name")
        return run_within(lambda: score_completions(samples, self.reward), seconds, name)

    def _trajectory(
        self, number: int, group: int, sample: SampledCompletion, completion: Completion, temperature: float
    ) -> SampledTrajectory:
        prompt = sample.prompt
        assert sample.reward is not None
        assert completion.policy_logp is not None
        return SampledTrajectory(
            uid=f"{self.name}-{number}",
            group=f"{self.name}-g{group}",
            prompt_id=prompt.prompt_id,
            messages=prompt.messages,
            completion=sample.text,
            answer=prompt.answer,
            input_ids=np.concatenate([prompt.tokens, completion.tokens]).astype(np.int32),
            start=len(prompt.tokens),
            behaviour_logp=completion.logp,
            policy_logp=completion.policy_logp,
            reward=sample.reward,
            ended=completion.ended,
            version=self.version,
            temperature=temperature,
            top_p=self.settings.top_p,
            source=ONLINE,
            time=time.time(),
        )


def run_within(work: Callable[[], Found], seconds: float, name: Any) -> Found:
    """Run the scoring `work` in a thread, for so many seconds at most, and return its result.

    Args:
        work: scores completions.
        seconds: that it may take.
        name: of the reward, for the message.

    Raises:
        TrainingError: it did not end in time; its thread is left behind.
    """
    found: list[Found] = []
    failed: list[BaseException] = []

    def done() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=done, daemon=True, name="shiqrun-reward")
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TrainingError(
            f"the reward {name} gave no answer within rollout.reward_timeout={seconds:g} seconds; nothing was trained "
            "on what it was asked. Look at the reward, or give it more time, and go on with resume=RUN_DIR"
        )
    return found[0]
