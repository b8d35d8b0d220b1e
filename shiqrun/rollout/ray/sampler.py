"""The actors of `rollout=ray` that sample: one with a copy of the policy, and beside it one with the reward."""

import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shiqrun.errors import TrainingError
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.rollout.engine import Weights
from shiqrun.rollout.ray.actors import BOARD, PAUSE_SECONDS, STORE, Report
from shiqrun.rollout.settings import RayRollouts
from shiqrun.rollout.trajectory import Trajectory
from shiqrun.rollout.worker import Worker
from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.sampler import SampledCompletion, score_completions

READY_SECONDS = 600
"""For a reward to be made: a model may have to be loaded."""
HOPELESS = 3
"""Portions without reward in a row after which a sampler gives up."""


@dataclass(frozen=True)
class Setup:
    """What every sampler starts from; it can be pickled.

    Attributes:
        policy: on the CPU; its weights are replaced before it samples.
        tokenizer: of the policy.
        prompts: to answer.
        reward_again: makes the reward once more.
        settings: of the rollouts.
        seed: of the run.
    """

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    reward_again: Callable[[], Reward]
    settings: RayRollouts
    seed: int


class Unscored(TrainingError):
    """The reward gave no answer to a portion, twice.

    Args:
        text: the message.
        prompts: ids of what it was asked.
    """

    def __init__(self, text: str, prompts: tuple[str, ...]) -> None:
        super().__init__(text)
        self.prompts = prompts


class Scorer:
    """A reward as an actor, so that it can be killed where it hangs."""

    def __init__(self, reward_again: Callable[[], Reward]) -> None:
        self._again = reward_again

    def ready(self) -> None:
        """Makes the reward.

        Raises:
            InputError: it cannot be made.
        """
        self._reward = self._again()
        self._reward.to(own_device())

    def score(self, samples: Sequence[SampledCompletion]) -> list[SampledCompletion]:
        """With rewards."""
        return score_completions(samples, self._reward)


class Scoring:
    """A `Scorer` of one sampler; another takes its place where it hangs or dies."""

    def __init__(self, reward_again: Callable[[], Reward], settings: RayRollouts, gpus: float) -> None:
        self._again, self._seconds, self._gpus = reward_again, settings.reward_timeout, gpus
        self._start()

    def _start(self) -> None:
        import ray

        kind: Any = ray.remote(num_cpus=0, num_gpus=self._gpus)(Scorer)
        self._scorer = kind.remote(self._again)
        self._made = self._scorer.ready.remote()

    def wait(self) -> None:
        """Until the reward is made.

        Raises:
            InputError: it cannot be made.
        """
        import ray

        ray.get(self._made, timeout=READY_SECONDS)

    def score(self, samples: Sequence[SampledCompletion]) -> list[SampledCompletion]:
        """With rewards.

        Raises:
            Unscored: no answer in time, twice.
        """
        import ray

        for _ in range(2):
            try:
                self.wait()
                return list(ray.get(self._scorer.score.remote(samples), timeout=self._seconds))
            except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
                ray.kill(self._scorer)
                self._start()
        raise Unscored(
            f"the reward gave no answer within rollout.reward_timeout={self._seconds:g} seconds, also when it was "
            "started again and asked once more",
            tuple(dict.fromkeys(sample.prompt.prompt_id for sample in samples)),
        )


class ActorWorker(Worker):
    """A worker whose `reward` is a `Scoring`."""

    def scored(self, samples: Sequence[SampledCompletion]) -> list[SampledCompletion]:
        """See `Scoring`."""
        scoring: Any = self.reward
        return list(scoring.score(samples))


@dataclass
class Sampler:
    """Samples for ever by the newest weights, and puts what it has sampled into the store.

    Attributes:
        place: number among all samplers.
        namespace: of the other actors.
        portion: trajectories sampled between two looks at the weights.
        cpus: cores for torch.
        scorer_gpus: what its `Scorer` reserves.
    """

    place: int
    namespace: str
    portion: int
    cpus: float
    scorer_gpus: float
    report: Report = field(default_factory=Report)

    def run(self) -> None:
        """Never returns; Ray calls it again in a process that takes the place of a dead one.

        Raises:
            TrainingError: the reward gives no answers at all.
        """
        import ray

        torch.set_num_threads(max(1, int(self.cpus)))
        self.process = uuid.uuid4().hex
        self._ray: Any = ray
        self._store, self._board = (ray.get_actor(name, self.namespace) for name in (STORE, BOARD))
        self._tell()
        try:
            self._work()
        except ray.exceptions.RayTaskError as error:  # of another actor: what it raised says more
            raise error.cause from None

    def _work(self) -> None:
        setup = self._setup()
        setup.policy.to(own_device())
        scoring: Any = Scoring(setup.reward_again, setup.settings, self.scorer_gpus)
        worker, dropped = self._worker(setup, scoring), 0
        scoring.wait()
        while True:
            self._refresh(worker)
            try:
                made = worker.sample(self.portion)
            except Unscored as error:
                dropped += 1
                if dropped == HOPELESS:
                    raise TrainingError(f"{error}, {dropped} portions in a row; look at the reward") from None
                # The numbers of a worker have no gaps: the next ones are another's.
                seconds, version, worker = worker.seconds, worker.version, self._worker(setup, scoring)
                worker.seconds, worker.version = seconds, version
                self._tell(unscored=self.report.unscored + self.portion, prompts=error.prompts)
            else:
                self._put(made, worker.seconds)
                dropped = 0

    def _worker(self, setup: Setup, scoring: Any) -> Worker:
        number = self._ray.get(self._store.incarnation.remote())
        parts = setup.policy, setup.tokenizer, setup.prompts, scoring, setup.settings
        worker = ActorWorker(*parts, seed=setup.seed, place=self.place, incarnation=number)
        worker.version = -1  # before the first weights
        return worker

    def _setup(self) -> Setup:
        while not (box := self._ray.get(self._board.setup.remote())):
            time.sleep(PAUSE_SECONDS)
        setup: Setup = self._ray.get(box[0])
        return setup

    def _refresh(self, worker: Worker) -> None:
        """The newest weights; waits for the first."""
        while True:
            version, box = self._ray.get(self._board.newest.remote(worker.version))
            if box:
                packed = self._ray.get(box[0])
                worker.load(version, unpacked(packed))
                size = sum(array.nbytes for _, _, array in packed.values())
                self._tell(transfers=self.report.transfers + 1, bytes=self.report.bytes + size)
            if worker.version >= 0:
                return
            time.sleep(PAUSE_SECONDS)

    def _put(self, made: list[Trajectory], seconds: dict[str, float]) -> None:
        began = time.perf_counter()
        storing = self._ray.get(self._store.put.remote(made))
        waiting = time.perf_counter() - began - storing
        now = {"storing": self.report.storing + storing, "waiting": self.report.waiting + waiting}
        self._tell(sampling=seconds["sampling"], rewards=seconds["rewards"], **now)

    def _tell(self, **news: Any) -> None:
        """Reports; nobody waits for it."""
        self.report = replace(self.report, **news)
        self._store.report.remote(self.process, self.report)


def own_device() -> torch.device:
    """A GPU where the actor has reserved one."""
    import ray

    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


Packed = dict[str, tuple[torch.dtype, torch.Size, np.ndarray]]


def packed(weights: Weights) -> Packed:
    """Weights as bytes, which Ray shares between processes without a copy; NumPy knows no bfloat16."""
    return {
        name: (value.dtype, value.shape, value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        for name, value in weights.items()
    }


def unpacked(weights: Packed) -> dict[str, Tensor]:
    """The tensors; not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes
        return {n: torch.from_numpy(array).view(dtype).reshape(shape) for n, (dtype, shape, array) in weights.items()}
