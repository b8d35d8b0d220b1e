"""`LiveView` shows the progress of a run: as a panel on a terminal, elsewhere as one line per logged step."""

import logging
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from shiqrun.console import console, number
from shiqrun.training.callbacks import Validation
from shiqrun.training.step.method import Method

log = logging.getLogger("shiqrun")
SHOWN = {
    "loss": "train/loss",
    "|residual|": "train/residual_abs",
    "log-ratio": "train/logratio_mean",
    "sampled reward": "train/reward/online",
    "grad norm": "train/grad_norm",
    "tokens/s": "train/tokens_per_second",
}
"""Names and metrics of the last step; the mean reward of logged data, which learning does not change, is none."""
SHOWN_OF_POLICY = {
    "reward": "val/reward",
    "a turn": "val/reward_per_turn",
    "win rate": "val/win_rate",
    "return": "val/regularised_return",
    "regret": "val/regret",
    "KL": "val/kl",
    "loss": "val/loss",
}
"""Names and metrics of the last evaluation of the policy, on the validation split."""
EVERY = 0.25
"""Seconds between two updates of the panel."""


class LiveView(Callback):
    """A `LiveView` is a callback that shows how far training is, with the latest metrics.

    Args:
        title: text beside the progress bar.
    """

    def __init__(self, title: str) -> None:
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
        )
        self.title = title
        self._live: Live | None = None
        self._drawn = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the progress panel on a terminal, before the evaluation at step 0."""
        self.task = self.bar.add_task(self.title, total=trainer.max_steps, left="?")
        if console.is_terminal and trainer.is_global_zero:
            self._live = Live(self._panel(trainer, {}), console=console, refresh_per_second=1 / EVERY)
            self._live.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the first step, and when it began."""
        self._began, self._first = time.perf_counter(), trainer.global_step
        self.bar.update(self.task, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update the progress panel or log a line, after the validation of this step."""
        assert isinstance(pl_module, Method)
        step, now = trainer.global_step, time.perf_counter()
        if self._live is not None:
            if now - self._drawn > EVERY or step >= (trainer.max_steps or 0):
                self._drawn = now
                self.bar.update(self.task, completed=step, left=self._left(trainer))
                self._live.update(self._panel(trainer, pl_module.latest))
        elif trainer.is_global_zero and pl_module.logs_now(step):
            parts = [_values(SHOWN, pl_module.latest), self._age(trainer), _values(SHOWN_OF_POLICY, pl_module.latest)]
            shown = "  ".join(part for part in parts if part)
            log.info("step %d/%d  %s  %s left", step, trainer.max_steps, shown, self._left(trainer))

    def _left(self, trainer: Trainer) -> str:
        done = trainer.global_step - self._first
        per_step = (time.perf_counter() - self._began) / max(done, 1)
        return str(timedelta(seconds=round(per_step * ((trainer.max_steps or 0) - trainer.global_step))))

    @staticmethod
    def _age(trainer: Trainer) -> str:
        """Return how old the last evaluation is; nothing where none has been made."""
        evaluated = [c.at for c in trainer.callbacks if isinstance(c, Validation) and c.at >= 0]  # type: ignore[attr-defined]
        if not evaluated:
            return ""
        ago = trainer.global_step - evaluated[0]
        return f"policy at step {evaluated[0]}" + (f", {ago} ago:" if ago else ":")

    def _panel(self, trainer: Trainer, latest: dict[str, float]) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_row("[dim]last step[/]", _values(SHOWN, latest))
        if age := self._age(trainer):
            table.add_row(f"[dim]{age}[/]", _values(SHOWN_OF_POLICY, latest))
        return Group(self.bar, table)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the progress panel."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the progress panel before the error is printed."""
        self._close()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _values(names: dict[str, str], latest: dict[str, float]) -> str:
    """Return the metrics that are known as text, each behind its name."""
    return "  ".join(f"{name} {number(latest[key])}" for name, key in names.items() if key in latest)
