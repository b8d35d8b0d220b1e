"""A Plan holds everything that a run is made of as objects; a Run adds its loaded data and models."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shiqrun.batching.logged_data import DataSettings, Encoded, fingerprint
from shiqrun.batching.rows import Rows
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.estimates.prompt_values import ValueSettings
from shiqrun.evaluation.evaluator import PolicyEvaluator
from shiqrun.models.policy import ModelSettings, Policy
from shiqrun.rewards.reward import Reward
from shiqrun.rollout.settings import RolloutSettings
from shiqrun.settings import AlgoSettings, EvalSettings, Hardware, TrainerSettings


class ModelChoice(Protocol):
    """What `conf/model/*.yaml` makes."""

    def tokenizer(self, source: Source, training: Any) -> PreTrainedTokenizerBase:
        """The tokenizer, with a chat template."""

    def build(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        """The model at step 0."""

    def context(self) -> int | None:
        """Tokens it can read."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run is, as objects."""

    names: dict[str, str]  # algo, data, base
    seed: int
    source: Source
    data: DataSettings
    choice: ModelChoice
    model: ModelSettings
    loss: partial[Any]
    algo: AlgoSettings
    trainer: TrainerSettings
    eval: EvalSettings
    values: ValueSettings
    reward: Reward | None  # scores the policy's own answers
    reward_again: Callable[[], Reward]  # makes it once more, in another process
    rollout: RolloutSettings | None  # sampling while learning
    hardware: Hardware
    cache_dir: Path
    run_dir: Path
    trackers: Callable[[], list[Logger]]
    shown: dict[str, Any]  # settings for the model card


@dataclass
class Run:
    """A plan with its data and models loaded: ready to train, or to say what it would do."""

    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    encoded: Encoded
    policy: Policy
    weights: str
    offset: float
    max_steps: int
    evaluator: PolicyEvaluator | None
    scored_by: str | None  # fingerprint of what scores the policy's answers
    further: Rows | None = None  # of the source `further` of rollouts
    prompt_values: dict[str, float] | None = None  # Q0 of each prompt id, for methods that read it

    def made_of(self) -> dict[str, str | None]:
        """Fingerprints of what a checkpoint of this run is only good with."""
        found = {"data": self.encoded.fingerprint, "model": self.weights, "reward": self.scored_by}
        found |= {} if self.further is None else {"further": fingerprint(self.further)}
        files = {"values": self.plan.algo.values, "targets": self.plan.algo.targets}
        return found | {name: _digest(Path(path)) for name, path in files.items() if path}


def _digest(path: Path) -> str:
    """Of a file's contents.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
