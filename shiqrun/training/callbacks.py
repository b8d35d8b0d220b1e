"""Lightning callbacks save checkpoints, and validate the policy during training."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from shiqrun.errors import InputError, TrainingError
from shiqrun.evaluation.evaluator import EvaluationResult, PolicyEvaluator
from shiqrun.models.policy import Policy
from shiqrun.models.reference import Live
from shiqrun.models.sharding import with_whole_weights
from shiqrun.training.step.method import Method

log = logging.getLogger("shiqrun")
FAR_NATS = 20.0
"""A divergence of the policy from its reference, a completion, beyond which a run is warned of once."""
MONITORED = (("val/regularised_return", 1), ("val/reward", 1), ("val/loss", -1))
"""The metrics that choose the best checkpoint, the first known one counts; 1 if more is better, else -1."""

MARKS = "journals"
"""The key of the journals' marks in the state of `Checkpoints`."""


class Journal(Protocol):
    """A `Journal` is a file that a run appends rows to."""

    def mark(self) -> dict[str, Any]:
        """Return what finds the present rows again."""
        ...


class Checkpoints(Callback):
    """A `Checkpoints` saves `last.ckpt` regularly and at the end, and `best.ckpt` when validation improves.

    Lightning's ModelCheckpoint numbers files anew after a resume and does not write atomically.

    Args:
        directory: of the checkpoints.
        every: optimiser steps between two checkpoints.

    Attributes:
        journals: the files that grow with the run, by their names; each must hold what it holds now when the run is
            resumed.
    """

    def __init__(self, directory: Path, every: int) -> None:
        self.last, self.best_path, self.every = directory / "last.ckpt", directory / "best.ckpt", every
        self.best: float | None = None
        self.journals: dict[str, Journal] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation metric so far and the marks of the journals, to be kept in a checkpoint."""
        return {"best": self.best, MARKS: {name: journal.mark() for name, journal in self.journals.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best validation metric from a checkpoint."""
        self.best = state_dict["best"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save `last.ckpt` if it is due, after the validation of this step."""
        if trainer.global_step % self.every == 0 or trainer.global_step >= (trainer.max_steps or 0):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save `last.ckpt` now."""
        trainer.save_checkpoint(self.last)

    def save_if_best(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Save the weights alone as `best.ckpt` if these validation metrics are better than the best so far."""
        for name, sign in MONITORED:
            if name in metrics:
                if self.best is None or sign * metrics[name] > self.best:
                    self.best = sign * metrics[name]
                    trainer.save_checkpoint(self.best_path, weights_only=True)
                return


Exact = Callable[[Any], dict[str, float]]
Further = Callable[[PolicyEvaluator, EvaluationResult, Policy], dict[str, float]]
"""Measures what an evaluation has sampled once more."""


class Validation(Callback):
    """A `Validation` evaluates the policy during training: validation loss, sampled completions, and exact metrics.

    It runs at step 0, every `every` optimiser steps and at the end. Its metrics go to the same loggers as those of
    training, as `val/...`.

    Args:
        every: optimiser steps between two evaluations.
        checkpoints: chooses the best checkpoint by the metrics.
        exact: computes exact metrics of a model, see `ExactEvaluation.evaluate`; their names get the prefix `val/`.
        answers: the evaluation by sampled completions, or None.
        live: the reference that `answers` compares with.
        keep: stores the rows of `samples.jsonl`, on rank 0.
        further: returns further metrics of what was sampled, by their names; None for none.
    """

    def __init__(
        self,
        every: int,
        checkpoints: Checkpoints,
        exact: Exact | None = None,
        *,
        answers: PolicyEvaluator | None = None,
        live: Live | None = None,
        keep: Callable[[Trainer, list[dict[str, Any]]], None] = lambda trainer, rows: None,
        further: Further | None = None,
    ) -> None:
        self.every, self.checkpoints, self.exact = every, checkpoints, exact
        self.answers, self.live, self.keep, self.further = answers, live, keep, further
        self.first: dict[str, float] = {}
        self.metrics: dict[str, float] = {}  # of the last evaluation
        self.last: EvaluationResult | None = None
        self.drifted = False
        self.seconds, self.at = 0.0, -1  # at: the step of the last evaluation
        self._wall, self._began = 0.0, time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: metrics at step 0, the step of the last evaluation, and seconds spent."""
        return {"first": self.first, "at": self.at, "seconds": self.seconds, "wall": self.wall()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metrics at step 0, the last evaluated step and the seconds spent from a checkpoint."""
        self.first, self.at, self.seconds = state_dict["first"], state_dict["at"], state_dict["seconds"]
        self._wall, self._began = state_dict["wall"], time.perf_counter()

    def wall(self) -> float:
        """Return the seconds since training began, over all sessions of the run."""
        return self._wall + time.perf_counter() - self._began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample the reference's completions, and evaluate at step 0 or at a step whose evaluation failed before."""
        if self.answers is not None:
            self._begin(trainer, pl_module)
        if trainer.global_step == 0:
            self.first = self.run(trainer, pl_module)
        elif trainer.global_step % self.every == 0 and self.at != trainer.global_step:
            self.checkpoints.save_if_best(trainer, self.run(trainer, pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Evaluate the policy if it is due, and after the last step."""
        if trainer.global_step % self.every == 0 or trainer.global_step >= (trainer.max_steps or 0):
            self.checkpoints.save_if_best(trainer, self.run(trainer, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample the last completions again where a run was resumed after its last step: its token view shows them."""
        if self.answers is None or self.last is not None or trainer.global_step < (trainer.max_steps or 0):
            return
        self._begin(trainer, pl_module)
        self._sample_again(trainer, pl_module)

    @with_whole_weights
    def _sample_again(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, Method)
        assert self.answers is not None
        self.last = self.answers.run(module.policy)

    @with_whole_weights
    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        assert self.answers is not None
        began = time.perf_counter()
        self.answers.begin(self.live, module.device, trainer.global_rank, trainer.world_size)
        self.seconds += time.perf_counter() - began

    @with_whole_weights
    def run(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Evaluate the policy once and return the metrics; `val/reward` is of its completions, not of the data."""
        assert isinstance(module, Method)
        module.check_pending()
        began = time.perf_counter()
        metrics = self._on_data(trainer, module)
        if self.exact is not None:
            module.policy.eval()
            metrics |= self.exact(module.policy.model)
            module.policy.train()
        if self.answers is not None:
            self.last = self._answered(self.answers, trainer, module)
            metrics |= self.last.metrics
            metrics |= self.further(self.answers, self.last, module.policy) if self.further else {}
            if trainer.is_global_zero:
                self.keep(trainer, self.last.rows(trainer.global_step))
        self.seconds, self.at = self.seconds + time.perf_counter() - began, trainer.global_step
        if metrics:
            metrics["eval_share"] = self.share()
            metrics["seconds_training"] = self.wall() - self.seconds
        self.metrics = metrics = {f"val/{name}": value for name, value in metrics.items()}
        module.record(metrics)
        self._warn_of_drift(trainer, metrics.get("val/kl", 0.0))
        return metrics

    def _warn_of_drift(self, trainer: Trainer, kl: float) -> None:
        """Say once that the policy has gone far from its reference, while the run can still be stopped."""
        if kl > FAR_NATS and not self.drifted and trainer.is_global_zero:
            log.warning(
                f"val/kl={kl:.3g} nats a completion at step {trainer.global_step}: the policy has left its reference, "
                "where rewards of a model mean little; raise algo.beta or lower trainer.learning_rate"
            )
        self.drifted = self.drifted or kl > FAR_NATS

    def share(self) -> float:
        """Return the share of wall time that evaluations have taken so far."""
        return self.seconds / max(self.wall(), 1e-9)

    def _answered(self, answers: PolicyEvaluator, trainer: Trainer, module: Method) -> EvaluationResult:
        """Evaluate the policy's completions; save a checkpoint before an error ends a run that has begun.

        None is saved after the last step, which a resumed run would not evaluate again, nor where other ranks wait for
        this one: such a run resumes from its last checkpoint.
        """
        try:
            return answers.run(module.policy)
        except InputError as error:
            if not trainer.global_step:
                raise
            if trainer.world_size == 1 and trainer.global_step < (trainer.max_steps or 0):
                self.checkpoints.save(trainer)
            raise TrainingError(f"the evaluation of step {trainer.global_step} failed: {error}") from error

    @torch.no_grad()
    def _on_data(self, trainer: Trainer, module: Method) -> dict[str, float]:
        """Return the loss and its metrics on the logged trajectories of the validation split."""
        module.policy.eval()
        split = (batch.to(module.device) for _, batch in trainer.datamodule.validation())  # type: ignore[attr-defined]
        tallies = [module.validation_metrics(batch) for batch in module.with_kl_estimate(split)]
        module.policy.train()
        found = module.reduce_metrics(tallies) if tallies else {}
        return {
            name: total / count for name, (total, count) in found.items() if count and name.split("/")[0] != "reward"
        }
