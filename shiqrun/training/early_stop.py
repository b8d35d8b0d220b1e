"""`EarlyStop` ends a run where a metric no longer improves."""

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from shiqrun.console import count_of, number
from shiqrun.errors import InputError
from shiqrun.settings import TrainerSettings
from shiqrun.training.callbacks import Validation
from shiqrun.training.step.method import Method
from shiqrun.util.metric_directions import direction_of
from shiqrun.util.nearest import did_you_mean

log = logging.getLogger("shiqrun")


class EarlyStop(Callback):
    """An `EarlyStop` ends a run after `stop_patience` looks at a metric without an improvement.

    It looks after each evaluation, or at each logged row where nothing is evaluated; a metric of training is averaged
    over the rows since the last look, because single batches are noisy. The learning rate keeps the schedule of the
    whole run. Lightning's EarlyStopping watches only what goes through `LightningModule.log`.

    Args:
        settings: `stop_metric` and the keys beside it.
        validation: evaluates, and stands before this callback in the trainer's list; None if nothing is evaluated.

    Attributes:
        reason: one sentence on why the run was stopped, None while it goes on.
        step: the optimiser step after which it was stopped.
    """

    def __init__(self, settings: TrainerSettings, validation: Validation | None) -> None:
        assert settings.stop_metric is not None
        self.settings, self.metric, self.validation = settings, settings.stop_metric, validation
        wanted = {"max": 1, "min": -1}.get(settings.stop_mode) or direction_of(self.metric)
        assert wanted is not None  # `training.checks` has seen to it
        self.sign = wanted
        self.best, self.best_step, self.waited = math.nan, -1, 0
        self.rows: list[float] = []  # of a metric of training, since the last look
        self.seen, self.looked = -1, -1  # the last steps whose row was taken, and at which the metric was judged
        self.reason: str | None = None
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the best value, the looks since, and whether the run was stopped."""
        kept = ("best", "best_step", "waited", "rows", "seen", "looked", "reason", "step")
        return {name: getattr(self, name) for name in kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a run that was stopped before at its last step."""
        if self.reason is not None:
            _end_at(trainer, self.step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at an evaluation that preceded the first step of this session."""
        self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look at the metric if it is due, before the checkpoint of this step is saved."""
        self._look(trainer, pl_module)

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` says of the stop; nothing where the run was not stopped."""
        return {"stopped_early": self.reason} if self.reason else {}

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the metric at this step, and stop the run once it has not improved for long enough."""
        assert isinstance(module, Method)
        step = trainer.global_step
        logged = step > self.seen and step > 0 and module.logs_now(step)
        evaluated = self.validation is not None and self.validation.at == step
        if not self.metric.startswith("val/") and logged:
            self._expect_known(module.latest, step)
            self.rows.append(module.latest[self.metric])
            self.seen = step
        if step <= self.looked or not (evaluated or (logged and self.validation is None)):
            return
        value = self._value(step)
        if value is None:
            return
        self.looked, self.rows = step, []
        self._judge(float(trainer.strategy.broadcast(value)), step)  # all ranks by the main one's clock
        if self.waited >= self.settings.stop_patience and step < trainer.max_steps:
            self._stop(trainer)

    def _value(self, step: int) -> float | None:
        """Return the metric at this look, NaN where the evaluation lacks it; None before the first row of training."""
        if not self.metric.startswith("val/"):
            return math.fsum(self.rows) / len(self.rows) if self.rows else None
        assert self.validation is not None
        if self.best_step < 0 and self.looked < 0:
            self._expect_known(self.validation.metrics, step)
        return self.validation.metrics.get(self.metric, math.nan)

    def _expect_known(self, known: dict[str, float], step: int) -> None:
        """Check that the metric was measured.

        Raises:
            InputError: it was not.
        """
        if self.metric not in known:
            near = did_you_mean(self.metric, known)
            names = ", ".join(sorted(name for name in known if name.split("/")[0] == self.metric.split("/")[0]))
            raise InputError(
                f"trainer.stop_metric={self.metric}: step {step} has not measured it{near or f'; measured are {names}'}"
            )

    def _judge(self, value: float, step: int) -> None:
        better = self.sign * (value - self.best) > self.settings.stop_min_delta
        if better or (math.isnan(self.best) and math.isfinite(value)):
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1

    def _stop(self, trainer: Trainer) -> None:
        """End the run after this step, and say why."""
        planned, self.step = trainer.max_steps, trainer.global_step
        how, than = ("risen", "above") if self.sign > 0 else ("fallen", "below")
        least = f"by more than {self.settings.stop_min_delta:g} " if self.settings.stop_min_delta else ""
        looks = count_of(self.waited, "evaluation" if self.validation is not None else "logged row")
        self.reason = (
            f"Stopped early after step {self.step} of {planned}: {self.metric} has not {how} {least}{than} "
            f"{number(self.best)} (step {self.best_step}) in {looks}"
        )
        if trainer.is_global_zero:
            log.info(self.reason)
        _end_at(trainer, self.step)


def _end_at(trainer: Trainer, step: int) -> None:
    """Make a step the run's last one, at which the callbacks that follow and Lightning itself end."""
    trainer.fit_loop.epoch_loop.max_steps = step
