"""What happens around the steps: checkpoints, signals, validation."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from shiqrun.errors import InputError, TrainingError
from shiqrun.evaluation.evaluator import EvaluationResult, PolicyEvaluator
from shiqrun.models.reference import Live
from shiqrun.training.step.method import Method
from shiqrun.util.atomic import atomic_path, remove_partials

MONITORED = (("val/regularised_return", 1), ("val/reward", 1), ("val/loss", -1))
"""What the best checkpoint is best by, the first that is there; and whether more or less is better."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill leaves the former checkpoint whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves `checkpoint` under `path`, all or nothing."""
        target = Path(path)
        remove_partials(target.parent, target.name)  # a run has one writer; what a killed one left may be large
        with atomic_path(target) as partial:
            super().save_checkpoint(checkpoint, partial, storage_options)


class Checkpoints(Callback):
    """`last.ckpt` every so many steps and at the end, `best.ckpt` when validation improves.

    Lightning's ModelCheckpoint numbers files anew after a resume and does not write atomically.

    Args:
        directory: where they go.
        every: optimiser steps.
    """

    def __init__(self, directory: Path, every: int) -> None:
        self.last, self.best_path, self.every = directory / "last.ckpt", directory / "best.ckpt", every
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """After a resume."""
        self.best = state_dict["best"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Saves when it is time; after the validation of this step."""
        if trainer.global_step % self.every == 0 or trainer.global_step >= (trainer.max_steps or 0):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Writes `last.ckpt` now."""
        trainer.save_checkpoint(self.last)

    def consider(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Writes `best.ckpt` if these validation metrics beat the best so far."""
        for name, sign in MONITORED:
            if name in metrics:
                if self.best is None or sign * metrics[name] > self.best:
                    self.best = sign * metrics[name]
                    trainer.save_checkpoint(self.best_path)
                return


class Stopped(Exception):
    """A signal ended the run after a saved step. No KeyboardInterrupt: Lightning leaves with exit code 1 on those."""


class Signals(Callback):
    """SIGINT and SIGTERM save after the present step, on every rank, then end the run; a second SIGINT ends it now."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received = 0
        self._ranks: Any = None  # a group that talks over the CPU
        self._former: dict[int, Any] = {}

    def install(self) -> None:
        """Takes over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            former = signal.signal(number, self._note)
            self._former.setdefault(number, former)

    def restore(self) -> None:
        """Gives both signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has put its own SIGTERM handler over ours by now, and asks all ranks about it at each step.

        The question is void with its handler gone, and waits for the device: ours goes over the CPU.
        """
        self.install()
        if trainer.world_size > 1:
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
            self._ranks = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Runs last of the callbacks: the step is complete and its rows are written."""
        stop = self.received
        if self._ranks is not None:
            told = torch.tensor(stop)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, self._ranks)
            stop = int(told)
        if stop:
            self.checkpoints.save(trainer)
            raise Stopped(f"stopped after step {trainer.global_step}; the checkpoint is saved")


Exact = Callable[[Any], dict[str, float]]


class Validation(Callback):
    """The loss on the validation split, the policy's answers, and what can be known exactly, every so many steps.

    At step 0, every `every` steps and at the end. Numbers go to the same loggers as training's, as `val/...`.

    Args:
        every: optimiser steps.
        checkpoints: told of each result.
        exact: of the model, see `ExactEvaluation.evaluate`; its keys get the prefix `val/`.
        answers: the evaluation by sampled answers, or None.
        live: the reference that it compares with.
        keep: what is done with the rows of `samples.jsonl`, on rank 0.
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
    ) -> None:
        self.every, self.checkpoints, self.exact = every, checkpoints, exact
        self.answers, self.live, self.keep = answers, live, keep
        self.first: dict[str, float] = {}
        self.last: EvaluationResult | None = None
        self.seconds, self.at = 0.0, -1  # at: the last step that was evaluated
        self._wall, self._began = 0.0, time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The numbers at step 0, for the table at the end, the last step that was evaluated, and the clocks."""
        return {"first": self.first, "at": self.at, "seconds": self.seconds, "wall": self.wall()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """After a resume."""
        self.first, self.at, self.seconds = state_dict["first"], state_dict["at"], state_dict["seconds"]
        self._wall, self._began = state_dict["wall"], time.perf_counter()

    def wall(self) -> float:
        """Seconds since training began, over all its sessions."""
        return self._wall + time.perf_counter() - self._began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The reference's answers, and the numbers before any step, or those of a step at which evaluation failed."""
        began = time.perf_counter()
        if self.answers is not None:
            self.answers.begin(self.live, pl_module.device, trainer.global_rank, trainer.world_size)
        self.seconds += time.perf_counter() - began
        if trainer.global_step == 0:
            self.first = self.run(trainer, pl_module)
        elif trainer.global_step % self.every == 0 and self.at != trainer.global_step:
            self.checkpoints.consider(trainer, self.run(trainer, pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """When it is time, and at the end."""
        if trainer.global_step % self.every == 0 or trainer.global_step >= (trainer.max_steps or 0):
            self.checkpoints.consider(trainer, self.run(trainer, pl_module))

    def run(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """One evaluation. `val/reward` is the policy's own, so the data's is left out."""
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
            if trainer.is_global_zero:
                self.keep(trainer, self.last.rows(trainer.global_step))
        self.seconds, self.at = self.seconds + time.perf_counter() - began, trainer.global_step
        if metrics:
            metrics["eval_share"] = self.share()
            metrics["seconds_training"] = self.wall() - self.seconds
        metrics = {f"val/{name}": value for name, value in metrics.items()}
        module.record(metrics)
        return metrics

    def share(self) -> float:
        """Of the wall time so far, what evaluations took."""
        return self.seconds / max(self.wall(), 1e-9)

    def _answered(self, answers: PolicyEvaluator, trainer: Trainer, module: Method) -> EvaluationResult:
        """The policy's answers; what is wrong with them ends a run that has begun only after it is saved.

        Not after the last step, which a resumed run would not evaluate again, and not where other ranks wait for this
        one: such a run goes on from its last checkpoint.
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
        """The loss and its metrics on the logged trajectories of the validation split."""
        module.policy.eval()
        tallies = [
            module.validation_metrics(batch.to(module.device))
            for _, batch in trainer.datamodule.validation()  # type: ignore[attr-defined]
        ]
        module.policy.train()
        found = module.reduce_metrics(tallies) if tallies else {}
        return {name: total / count for name, (total, count) in found.items() if count and name != "reward"}
