"""A served worker is a rollout worker whose completions a vLLM server samples."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.errors import TrainingError
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.rollout.engine import Weights
from shiqrun.rollout.settings import VllmRollouts
from shiqrun.rollout.vllm.server_process import ServerProcess
from shiqrun.rollout.vllm.weights import Publisher
from shiqrun.rollout.worker import RolloutWorker
from shiqrun.sampling.generate import Completion
from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.served import Asked
from shiqrun.util.json_http import PAUSE_SECONDS, Refusal, Unreachable

log = logging.getLogger("shiqrun")
TRIES = 3
"""Times that the same work is asked of a server that dies over it and comes back."""
Found = TypeVar("Found")


class ServedWorker(RolloutWorker):
    """A served worker asks a vLLM server for completions, and sends it weights.

    Where the server dies, it waits until it is back and has it load the newest weights again.

    Args:
        publisher: sends weights to the server.
        process: the server, where this run has started it.
        policy: that is trained; it is not sampled from here.
        tokenizer, prompts, reward, settings, seed, number: see `RolloutWorker`.
    """

    settings: VllmRollouts

    def __init__(
        self,
        publisher: Publisher,
        process: ServerProcess | None,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        reward: Reward,
        settings: VllmRollouts,
        *,
        seed: int,
        number: int,
    ) -> None:
        super().__init__(policy, tokenizer, prompts, reward, settings, seed=seed, number=number)
        self.publisher, self.process = publisher, process

    def load(self, version: int, weights: Weights) -> int:
        """Send these weights to the server, and return how many bytes that were; see `RolloutWorker.load`.

        Raises:
            TrainingError: it does not take them, or has died and does not come back.
        """
        size = self._with_server(lambda: self.publisher.publish(version, weights))
        self.version = version
        return size

    def _complete(
        self, numbers: Sequence[int], prompts: Sequence[Prompt], temperatures: Sequence[float]
    ) -> list[Completion]:
        """Sample a completion of each prompt by the server, those of a group in one request; see `RolloutWorker`."""
        size = self.settings.samples_per_prompt
        asked = [
            Asked(prompts[k].tokens, size, temperatures[k], self._seed(numbers[k]))
            for k in range(0, len(prompts), size)
        ]

        def complete() -> list[list[Completion]]:
            self.publisher.load_if_restarted()
            new, top_p = self.settings.max_new_tokens, self.settings.top_p
            return self.publisher.served.complete(asked, stop=self._stop, max_new_tokens=new, top_p=top_p)

        groups = self._with_server(complete)
        completions = [completion for group in groups for completion in group]
        if self.settings.as_it_is:
            return [replace(c, policy_logp=c.logp) for c in completions]
        rows = [
            (np.concatenate([p.tokens, c.tokens]), len(p.tokens)) for p, c in zip(prompts, completions, strict=True)
        ]
        own = self._with_server(lambda: self.publisher.served.score(rows))
        return [
            replace(c, logp=c.logp if t else np.zeros_like(c.logp), policy_logp=mine)
            for c, t, mine in zip(completions, temperatures, own, strict=True)
        ]

    def _seed(self, number: int) -> int:
        """Return the server's seed for a trajectory of this number and those of its group."""
        return int(np.random.SeedSequence([*self._stream, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _with_server(self, work: Callable[[], Found]) -> Found:
        """Do what asks the server; where it dies, wait until it is back, send the newest weights, and ask again.

        Raises:
            TrainingError: it does not come back in time, or refuses what it is asked.
        """
        said = ""
        for tries in range(TRIES):
            try:
                if tries:
                    self.publisher.load_again()
                return work()
            except Unreachable as error:
                said = str(error)
                self._wait(said)
            except (Refusal, ValueError, KeyError) as error:
                raise TrainingError(
                    f"{self._url}: the vLLM server gave no completions: {error}. {self._advice}"
                ) from error
        raise TrainingError(
            f"{self._url}: the vLLM server gave no answer ({said}), {TRIES} times to the same requests; where it is "
            f"only slow, raise rollout.timeout={self.settings.timeout:g}. {self._advice}"
        )

    @property
    def _url(self) -> str:
        return f"rollout.base_url={self.publisher.served.server.url}"

    @property
    def _advice(self) -> str:
        return "Nothing that was accepted is lost: look at the server, and go on with resume=RUN_DIR"

    def _wait(self, said: str) -> None:
        """Wait for a server that has died.

        Raises:
            TrainingError: it is not back in time, or was started by this run, whose end it is.
        """
        server, seconds = self.publisher.served.server, self.settings.timeout
        time.sleep(PAUSE_SECONDS)  # a process that was killed is gone only now
        if self.process is not None and (ended := self.process.end()):
            raise TrainingError(f"{self._url}: the server of rollout.command has ended with {ended}. {self._advice}")
        log.warning("the vLLM server at %s gives no answer (%s); waiting up to %g s for it", server.url, said, seconds)
        try:
            server.wait("/health", seconds)
        except Unreachable as error:
            raise TrainingError(
                f"{self._url}: the vLLM server gives no answer ({error}), and did not come back within "
                f"rollout.timeout={seconds:g} seconds. {self._advice}"
            ) from error
        log.warning("the vLLM server at %s answers again; it gets the newest weights", server.url)
