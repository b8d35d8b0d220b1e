"""An episode worker lets a copy of the policy play the environment of the data set, which pays for every message."""

import logging
import math
import time
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.environments.environment import Episode, EpisodeFailed, Step
from shiqrun.errors import TrainingError
from shiqrun.models.policy import Policy
from shiqrun.rollout.episodes import EpisodeActor, SampledEpisode, Tasks
from shiqrun.rollout.settings import ONLINE, RolloutSettings
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.rollout.worker import Worker
from shiqrun.sampling.play import play

log = logging.getLogger("shiqrun")
MOST_TRIES = 10
"""Tasks that are tried in the place of one whose episode could not be played, before the run ends."""


class EpisodeWorker(Worker):
    """An episode worker samples whole episodes of tasks, many side by side.

    An episode that the environment fails to play, or that leaves no room for a message, is no trajectory: its group is
    played again on another task, which the numbers of group and try alone decide.

    Args:
        policy, tokenizer, settings, seed, place, incarnation, number: see `Worker`.
        tasks: what is played.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Tasks,
        settings: RolloutSettings,
        *,
        seed: int,
        place: int = 0,
        incarnation: int = 0,
        number: int = 0,
    ) -> None:
        counted = {"seed": seed, "place": place, "incarnation": incarnation, "number": number}
        super().__init__(policy, tokenizer, settings, **counted)
        self.tasks, self.actor = tasks, EpisodeActor(policy, tokenizer, settings, tasks.context)
        self._told = False

    def close(self) -> None:
        """End the processes of the environment."""
        self.tasks.environment.close()

    def sample_numbers(self, numbers: Sequence[int]) -> list[SampledTrajectory]:
        """Play the episodes of these numbers to their ends; see `Worker`.

        Raises:
            TrainingError: no task that was tried for one could be played.
        """
        left, found = [*numbers], dict[int, SampledTrajectory]()
        for tried in range(MOST_TRIES):
            played = self._play(left, tried)
            bad = {self._group(n) for n, r in played.items() if r.failed or not r.drawn}
            found |= {n: self._trajectory(n, r) for n, r in played.items() if self._group(n) not in bad}
            left = [n for n in left if self._group(n) in bad]
            if not left:
                return [found[number] for number in numbers]
        last = played[left[-1]]
        raise TrainingError(
            f"rollout: {MOST_TRIES} tasks in a row could not be played, last {last.task.prompt_id}: "
            f"{last.failed or last.truncated}; look at the environment, or give episodes more room (data.max_length, "
            "rollout.max_new_tokens)"
        )

    def _group(self, number: int) -> int:
        return number // self.settings.samples_per_prompt

    def _play(self, numbers: Sequence[int], tried: int) -> dict[int, SampledEpisode]:
        """Return the played episodes of these numbers; `tried` counts the tasks that were tried for them before."""
        began, before = time.perf_counter(), self.actor.seconds
        running = {number: self._begin(number, tried) for number in numbers}
        play([*running.values()], self.actor, description="")
        for r in running.values():
            r.episode.close()
        failed = [r.failed for r in running.values() if r.failed]
        self.failed += len(failed)
        if failed and not self._told:
            self._told = True
            log.warning(f"rollout: {failed[0]}; such episodes are left out, and others are played in their place")
        sampling = self.actor.seconds - before
        self.seconds["sampling"] += sampling
        self.seconds["rewards"] += time.perf_counter() - began - sampling
        return running

    def _begin(self, number: int, tried: int) -> SampledEpisode:
        """Open the episode of a number."""
        s, group, examples = self.settings, self._group(number), self.tasks.examples
        place = self._place(group, len(examples))
        if tried:
            place = int(np.random.default_rng([*self._stream, 3, group, tried]).integers(len(examples)))
        task, world = examples[place], self.tasks.environment
        try:
            episode = world.begin(task)
        except EpisodeFailed as error:
            episode = _NotBegun(str(error))
        key = [*self._stream, 0, number, tried]
        index, temperature = number % s.samples_per_prompt, self._temperature(group)
        r = SampledEpisode(task, index, episode, world.max_messages, key=key, temperature=temperature)
        if episode.failed:
            r.fail(episode.failed)
        return r

    def _trajectory(self, number: int, r: SampledEpisode) -> SampledTrajectory:
        turns, own = r.turns(), [c.policy_logp for c in r.drawn if c.policy_logp is not None]
        return SampledTrajectory(
            uid=f"{self.name}-{number}",
            group=f"{self.name}-g{self._group(number)}",
            prompt_id=r.task.prompt_id,
            messages=[*r.episode.opening],
            completion="\n\n".join(turns.said),
            answer=r.task.answer,
            input_ids=np.array(r.tokens, np.int32),
            start=r.spans[0][0],
            behaviour_logp=np.concatenate([c.logp for c in r.drawn]),
            policy_logp=np.concatenate(own),
            reward=math.fsum(turns.rewards),
            ended=all(c.ended for c in r.drawn),
            version=self.version,
            temperature=r.temperature,
            top_p=self.settings.top_p,
            source=ONLINE,
            time=time.time(),
            turns=turns,
        )


class _NotBegun(Episode):
    """An episode that could not be begun."""

    def __init__(self, why: str) -> None:
        self.opening, self.failed = (), why

    def step(self, text: str) -> Step:
        raise EpisodeFailed(self.failed)
