"""A `Plan` holds the settings of a training run as objects; a `Run` adds the loaded data and models."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shiqrun.batching.fingerprints import fingerprint
from shiqrun.batching.logged_data import DataSettings, EncodedData
from shiqrun.batching.rows import Rows
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.estimates.prompt_values import ValueSettings
from shiqrun.evaluation.evaluator import PolicyEvaluator
from shiqrun.losses.requirements import OF_REFERENCE, compares_completions, hyperparameters, needs_of
from shiqrun.models.policy import ModelSettings, Policy
from shiqrun.rewards.reward import Reward
from shiqrun.rollout.settings import RolloutSettings
from shiqrun.settings import AlgoSettings, EvalSettings, Hardware, TrainerSettings
from shiqrun.training.annotate import RunFacts, annotate


class ModelChoice(Protocol):
    """A `ModelChoice` makes the model that `conf/model/*.yaml` names: tokenizer, weights at step 0, context length."""

    def tokenizer(self, source: Source, training: Any) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the model, with a chat template."""

    def build(
        self, tokenizer: PreTrainedTokenizerBase, seed: int, dtype: torch.dtype = torch.float32
    ) -> PreTrainedModel:
        """Return the model with the weights that training starts from, in a dtype."""

    def context(self) -> int | None:
        """Return the context length of the model in tokens, or None where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A `Plan` holds the settings of one training run as objects; no data or model is loaded yet.

    Attributes:
        names: of the method (`algo`), the data set (`data`) and the model that training starts from (`base`).
        seed: of the order of rows and of all draws during training.
        source: the data set.
        data: how it is read.
        choice: the model that training starts from.
        model: how it is made ready for training.
        loss: the method's loss, bound to its hyperparameters.
        algo: settings that every method understands.
        trainer: optimiser, schedule and batches.
        eval: evaluation during training.
        values: how prompt values are estimated.
        reward: scores the policy's completions; None without one.
        reward_again: makes the same reward once more, in another process.
        rollout: sampling during training; None for training on logged data alone.
        hardware: devices and precision.
        cache_dir: directory of reference scores and prompt values that runs share.
        run_dir: directory of this run's files.
        trackers: opens the loggers of experiment trackers.
        shown: settings that the model card lists.
    """

    names: dict[str, str]
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
    reward: Reward | None
    reward_again: Callable[[], Reward]
    rollout: RolloutSettings | None
    hardware: Hardware
    cache_dir: Path
    run_dir: Path
    trackers: Callable[[], list[Logger]]
    shown: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the method, as `algo=` has it."""
        return self.names["algo"]

    @property
    def beta(self) -> float | None:
        """Return the KL temperature, reward units per nat; None for methods without one."""
        return hyperparameters(self.loss).get("beta")

    @property
    def link(self) -> str | None:
        """Return how the loss compares Q with its target, "square" or "cross_entropy"; None without that choice."""
        return hyperparameters(self.loss).get("link")

    @property
    def top(self) -> float:
        """Return the largest reward that a cross-entropy takes to be possible, reward units."""
        return float(hyperparameters(self.loss).get("top", 0.0))

    @cached_property
    def needs(self) -> frozenset[str]:
        """What the loss reads besides tokens; see `losses.requirements`."""
        return needs_of(self.loss)

    @property
    def reads_values(self) -> bool:
        """Return whether the loss reads what is computed from rewards of the reference's own completions."""
        return bool(self.needs & OF_REFERENCE)

    @property
    def compares(self) -> bool:
        """Return whether the loss compares completions of one prompt."""
        return compares_completions(self.loss)

    @property
    def compared_by(self) -> str | None:
        """Return the name of the method where its loss compares logged completions of one prompt, else None.

        Logged completions are never trained on by a loss that reads the log-probabilities of sampling.
        """
        return self.name if self.compares and "behaviour" not in self.needs else None

    @cached_property
    def shares(self) -> dict[str, int]:
        """Return the number of trajectories of an optimiser step from each source."""
        size = self.trainer.batch_size
        return {"logged": size} if self.rollout is None else self.rollout.shares(size)


@dataclass(frozen=True)
class Run:
    """A `Run` is a plan with its data and models loaded, ready to train or to say what it would do.

    Attributes:
        plan: the settings.
        tokenizer: of the policy.
        encoded: the data set in tokens, annotated with `facts`.
        policy: the model to train.
        weights: fingerprint of the weights that training starts from.
        facts: what this run knows of any trajectory.
        max_steps: optimiser steps.
        evaluator: evaluates the policy by its own completions or episodes; None where that is not asked.
        scored_by: fingerprint of the reward that scores the policy's completions.
        further: rows of the file `rollout.path`, annotated likewise.
        tester: evaluates the trained policy on the test split; None where that is not asked, or is done exactly.
    """

    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    encoded: EncodedData
    policy: Policy
    weights: str
    facts: RunFacts
    max_steps: int
    evaluator: PolicyEvaluator | None
    scored_by: str | None
    further: Rows | None = None
    tester: PolicyEvaluator | None = None

    @property
    def offset(self) -> float:
        """Return the mean reward offset of the training rows, reward units."""
        return float(self.encoded.train.columns["offset"].mean())  # type: ignore[union-attr]

    def all_rows(self) -> list[Rows]:
        """Return every table of rows that was loaded: both splits, and the file of the source `further`."""
        return [self.encoded.train, self.encoded.val, *([] if self.further is None else [self.further])]

    def with_facts(self, facts: RunFacts) -> "Run":
        """Return the run with these facts and with all its rows annotated anew."""
        encoded = replace(
            self.encoded, train=annotate(self.encoded.train, facts), val=annotate(self.encoded.val, facts)
        )
        further = None if self.further is None else annotate(self.further, facts)
        return replace(self, facts=facts, encoded=encoded, further=further)

    def fingerprints(self) -> dict[str, str | None]:
        """Return a fingerprint of everything that a checkpoint of this run depends on, by name.

        Raises:
            InputError: a file of prompt values or value targets cannot be read.
        """
        found = {"data": self.encoded.fingerprint, "model": self.weights, "reward": self.scored_by}
        found |= {} if self.further is None else {"further": fingerprint(self.further)}
        files = {"values": self.plan.algo.values, "targets": self.plan.algo.targets}
        return found | {name: _file_digest(Path(path)) for name, path in files.items() if path}


def _file_digest(path: Path) -> str:
    """Return a hash of a file's contents.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
