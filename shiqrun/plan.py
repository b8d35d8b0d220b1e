"""What a run is, as objects, and everything that can be found wrong with it before training."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from shiqrun.console import quiet_other_ranks, track
from shiqrun.data.module import DataSettings, Encoded, examples_of, load, set_offset
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.losses.requirements import needs_of
from shiqrun.models.policy import ModelSettings, Policy, check_head, prepare
from shiqrun.models.reference import weights_fingerprint
from shiqrun.module import AlgoSettings, Hardware, TrainerSettings

log = logging.getLogger("shiqrun")


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
    eval_every: int
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


def ready(plan: Plan) -> Run:
    """Loads data and model and checks all that can be known before training.

    Raises:
        InputError: data or model that cannot be used, or that do not fit the method.
    """
    quiet_other_ranks()
    seed_everything(plan.seed, verbose=False)
    disable_progress_bar()
    set_verbosity_error()
    tokenizer = plan.choice.tokenizer(plan.source, examples_of(plan.source, "train", plan.data))
    encoded = load(
        plan.source,
        tokenizer,
        plan.data,
        context=plan.choice.context(),
        progress=lambda items, what: track(items, what),
    )
    _check_needs(plan, encoded)
    if not len(encoded.val) and plan.eval_every:
        log.warning("no prompt fell to the validation split: nothing is evaluated; raise data.val_fraction")
    offset = set_offset(encoded, plan.algo.reward_offset)
    model = plan.choice.build(tokenizer, plan.seed)
    weights = weights_fingerprint(model)
    policy = Policy(prepare(model, plan.model), autocast=plan.hardware.autocast())
    check_head(policy, encoded.train.collate([int(encoded.train.lengths.argmin())]))
    return Run(plan, tokenizer, encoded, policy, weights, offset, _steps(plan, encoded))


def _check_needs(plan: Plan, encoded: Encoded) -> None:
    wanted, name = needs_of(plan.loss), plan.names["algo"]
    if "rewards" in wanted:
        bare = [t.source for t in encoded.train.trajectories if t.rewards is None]
        if bare:
            raise InputError(
                f"algo={name} needs rewards, but {len(bare)} of {len(encoded.train)} trajectories have none, first "
                f"{bare[0]}; add a column `reward` or `rewards`, or set data.pair_rewards=[1,-1] for pairs"
            )
        if plan.data.train_on != "assistant":
            raise InputError(
                f"data.train_on=response is for algo=sft: {name} would take the environment's tokens for actions"
            )
    if plan.algo.reference == "adapter" and not plan.model.lora_r:
        raise InputError(
            "algo.reference=adapter needs a LoRA adapter to switch off; set model.lora_r=16, or reference=cached"
        )
    if plan.algo.reference == "none" and wanted:
        raise InputError(f"algo.reference=none is for algo=sft; {name} needs cached, frozen or adapter")


def _steps(plan: Plan, encoded: Encoded) -> int:
    t = plan.trainer
    if t.max_steps is None and t.max_epochs is None:
        raise InputError("trainer.max_steps and trainer.max_epochs are both null; set one")
    return t.max_steps or (t.max_epochs or 0) * -(-len(encoded.train) // t.batch_size)


def default_cache_dir() -> Path:
    """SHIQRUN_CACHE, else ~/.cache/shiqrun."""
    return Path(os.environ.get("SHIQRUN_CACHE") or Path.home() / ".cache" / "shiqrun")
