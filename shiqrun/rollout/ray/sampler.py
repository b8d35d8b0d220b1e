"""Each sampler of `rollout=ray` is two Ray actors: one samples with a copy of the policy, the other has the reward."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from shiqrun.errors import TrainingError
from shiqrun.models.policy import ModelSettings, Policy, prepare
from shiqrun.models.precision import build_model
from shiqrun.rewards.reward import Reward
from shiqrun.rollout.episode_worker import EpisodeWorker
from shiqrun.rollout.episodes import Tasks
from shiqrun.rollout.ray.actors import BOARD, PAUSE_SECONDS, STORE, SamplerReport
from shiqrun.rollout.ray.packed_weights import unpack_weights
from shiqrun.rollout.settings import RayRollouts
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.rollout.worker import RolloutWorker, Worker
from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.sampler import SampledCompletion, score_completions

READY_SECONDS = 600
"""Seconds that making the reward may take: a model may have to be loaded."""
HOPELESS = 3
"""After so many portions in a row without reward a sampler gives up."""


@dataclass(frozen=True)
class SamplerSetup:
    """A sampler setup holds the objects that every sampler starts from; they can be pickled.

    Attributes:
        policy_again: makes the policy on the CPU; its trained weights are replaced before it samples.
        tokenizer: of the policy.
        prompts: the prompts to sample completions of, or the tasks whose episodes each sampler plays by itself.
        reward_again: makes another instance of the reward; an environment needs none.
        settings: the `rollout` settings.
        seed: of the run.
    """

    policy_again: Callable[[], Policy]
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt] | Tasks
    reward_again: Callable[[], Reward]
    settings: RayRollouts
    seed: int


@dataclass(frozen=True)
class PolicyRecipe:
    """A policy recipe makes a frozen policy for sampling where it is called: from the model's path, not its weights.

    Attributes:
        choice: loads or builds the model (`model=` of the run).
        model: how it is made ready.
        tokenizer: of the policy.
        seed: of random weights.
        dtype: of the weights.
        autocast: dtype of matrix products; None for that of the weights.
    """

    choice: Any
    model: ModelSettings
    tokenizer: PreTrainedTokenizerBase
    seed: int
    dtype: torch.dtype
    autocast: torch.dtype | None

    def __call__(self) -> Policy:
        """Return the policy.

        Raises:
            InputError: the model cannot be loaded, for instance because its path is not on this machine.
        """
        settings = replace(self.model, gradient_checkpointing=False)
        model = prepare(build_model(self.choice, self.tokenizer, self.seed, self.dtype), settings)
        return Policy(model, autocast=self.autocast).eval().requires_grad_(False)


class RewardTimeout(TrainingError):
    """RewardTimeout says that the reward gave no answer to a portion of trajectories, twice.

    Args:
        text: the message.
        prompts: ids of the portion's prompts.
    """

    def __init__(self, text: str, prompts: tuple[str, ...]) -> None:
        super().__init__(text)
        self.prompts = prompts


class Scorer:
    """The scorer is the Ray actor that holds the reward, so that a reward that hangs can be killed."""

    def __init__(self, reward_again: Callable[[], Reward]) -> None:
        self._again = reward_again

    def ready(self) -> None:
        """Make the reward in this actor.

        Raises:
            InputError: it cannot be made.
        """
        self._reward = self._again()
        self._reward.to(own_device())

    def score(self, samples: Sequence[SampledCompletion]) -> list[SampledCompletion]:
        """Return the sampled completions with their rewards."""
        return score_completions(samples, self._reward)


class ScorerHandle:
    """A scorer handle calls a sampler's `Scorer`, and replaces it by a new one where it hangs or dies."""

    def __init__(self, reward_again: Callable[[], Reward], settings: RayRollouts, gpus: float) -> None:
        self._again, self._seconds, self._gpus = reward_again, settings.reward_timeout, gpus
        self._start()

    def _start(self) -> None:
        import ray

        kind: Any = ray.remote(num_cpus=0, num_gpus=self._gpus)(Scorer)
        self._scorer = kind.remote(self._again)
        self._made = self._scorer.ready.remote()

    def wait(self) -> None:
        """Wait until the reward is made.

        Raises:
            InputError: it cannot be made.
        """
        import ray

        ray.get(self._made, timeout=READY_SECONDS)

    def score(self, samples: Sequence[SampledCompletion]) -> list[SampledCompletion]:
        """Return the sampled completions with their rewards.

        Raises:
            RewardTimeout: the reward gave no answer in time, twice.
        """
        import ray

        for _ in range(2):
            try:
                self.wait()
                return list(ray.get(self._scorer.score.remote(samples), timeout=self._seconds))
            except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
                ray.kill(self._scorer)
                self._start()
        raise RewardTimeout(
            f"the reward gave no answer within rollout.reward_timeout={self._seconds:g} seconds, also when it was "
            "started again and asked once more",
            tuple(dict.fromkeys(sample.prompt.prompt_id for sample in samples)),
        )


class ActorWorker(RolloutWorker):
    """An actor worker is a rollout worker whose `reward` is a `ScorerHandle`."""

    def score(self, samples: Sequence[SampledCompletion]) -> list[SampledCompletion]:
        """Return the sampled completions with their rewards, see `ScorerHandle.score`."""
        scoring: Any = self.reward
        return list(scoring.score(samples))


@dataclass
class SamplerActor:
    """The sampler is a Ray actor that samples for ever with the newest weights and stores the trajectories.

    Attributes:
        place: its number among all samplers.
        namespace: Ray namespace of the other actors.
        portion: number of trajectories sampled between two looks at the weights.
        cpus: CPU cores for torch.
        scorer_gpus: GPUs that its `Scorer` reserves.
    """

    place: int
    namespace: str
    portion: int
    cpus: float
    scorer_gpus: float
    report: SamplerReport = field(default_factory=SamplerReport)

    def run(self) -> None:
        """Sample trajectories until the process ends; Ray calls it again in a process that replaces a dead one.

        Raises:
            TrainingError: the reward has given no answer to several portions in a row.
        """
        import ray

        torch.set_num_threads(max(1, int(self.cpus)))
        self.process = uuid.uuid4().hex
        self._ray: Any = ray
        self._store, self._board = (ray.get_actor(name, self.namespace) for name in (STORE, BOARD))
        self._tell()
        try:
            self._work()
        except ray.exceptions.RayTaskError as error:  # another actor's: its own error says more
            raise error.cause from None

    def _work(self) -> None:
        setup = self._setup()
        self._policy = setup.policy_again().to(own_device())
        scoring: Any = None
        if not isinstance(setup.prompts, Tasks):
            scoring = ScorerHandle(setup.reward_again, setup.settings, self.scorer_gpus)
        worker, dropped = self._worker(setup, scoring), 0
        if scoring is not None:
            scoring.wait()
        while True:
            self._refresh(worker)
            try:
                made = worker.sample(self.portion)
            except RewardTimeout as error:
                dropped += 1
                if dropped == HOPELESS:
                    raise TrainingError(f"{error}, {dropped} portions in a row; look at the reward") from None
                # A worker numbers its trajectories without gaps, and those dropped had numbers: go on as a new worker.
                seconds, version, worker = worker.seconds, worker.version, self._worker(setup, scoring)
                worker.seconds, worker.version = seconds, version
                self._tell(unscored=self.report.unscored + self.portion, prompts=error.prompts)
            else:
                self._put(made, worker)
                dropped = 0

    def _worker(self, setup: SamplerSetup, scoring: Any) -> Worker:
        number = self._ray.get(self._store.incarnation.remote())
        own = {"seed": setup.seed, "place": self.place, "incarnation": number}
        worker: Worker
        if isinstance(setup.prompts, Tasks):
            worker = EpisodeWorker(self._policy, setup.tokenizer, setup.prompts, setup.settings, **own)
        else:
            worker = ActorWorker(self._policy, setup.tokenizer, setup.prompts, scoring, setup.settings, **own)
        worker.version = -1  # before the first weights
        return worker

    def _setup(self) -> SamplerSetup:
        while not (box := self._ray.get(self._board.setup.remote())):
            time.sleep(PAUSE_SECONDS)
        setup: SamplerSetup = self._ray.get(box[0])
        return setup

    def _refresh(self, worker: Worker) -> None:
        """Load the newest weights into the worker; wait for the first."""
        while True:
            version, box = self._ray.get(self._board.newest.remote(worker.version))
            if box:
                began = time.perf_counter()
                content = self._ray.get(box[0])
                worker.load(version, unpack_weights(content))
                size = sum(array.nbytes for _, _, array in content.values())
                fetching = self.report.fetching + time.perf_counter() - began
                self._tell(transfers=self.report.transfers + 1, bytes=self.report.bytes + size, fetching=fetching)
            if worker.version >= 0:
                return
            time.sleep(PAUSE_SECONDS)

    def _put(self, made: list[SampledTrajectory], worker: Worker) -> None:
        began = time.perf_counter()
        storing = self._ray.get(self._store.put.remote(made))
        waiting = time.perf_counter() - began - storing
        now = {"storing": self.report.storing + storing, "waiting": self.report.waiting + waiting}
        failed = worker.failed if isinstance(worker, EpisodeWorker) else None
        self._tell(**worker.seconds, failed=failed, **now)

    def _tell(self, **news: Any) -> None:
        """Send the report with these changes to the store, without waiting."""
        self.report = replace(self.report, **news)
        self._store.report.remote(self.process, self.report)


def own_device() -> torch.device:
    """Return the torch device of this actor: a GPU if it has reserved one."""
    import ray

    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")
