"""`LiveView` shows the progress of a run: as a panel on a terminal, elsewhere as one line per logged step."""

import logging
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from shiqrun.console import console, number
from shiqrun.training.step.method import Method

log = logging.getLogger("shiqrun")
SHOWN = {
    "loss": "train/loss",
    "|residual|": "train/residual_abs",
    "reward": "train/reward",
    "log-ratio": "train/logratio_mean",
    "grad norm": "train/grad_norm",
    "tokens/s": "train/tokens_per_second",
}
SHOWN_VAL = {
    "val loss": "val/loss",
    "val reward": "val/reward",
    "a turn": "val/reward_per_turn",
    "win rate": "val/win_rate",
    "val return": "val/regularised_return",
    "val regret": "val/regret",
    "val KL": "val/kl",
}


EVERY = 0.25
"""Seconds between two updates of the panel."""


class LiveView(Callback):
    """A `LiveView` is a callback that shows how far training is, with the latest metrics.

    Args:
        title: text beside the progress bar.
    """

    def __init__(self, title: str) -> None:
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
        )
        self.title = title
        self._live: Live | None = None
        self._drawn = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the progress panel on a terminal."""
        self._began, self._first = time.perf_counter(), trainer.global_step
        self.task = self.bar.add_task(self.title, total=trainer.max_steps, completed=trainer.global_step, left="?")
        if console.is_terminal and trainer.is_global_zero:
            self._live = Live(self._panel({}), console=console, refresh_per_second=1 / EVERY)
            self._live.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update the progress panel or log a line, after the validation of this step."""
        assert isinstance(pl_module, Method)
        step, now = trainer.global_step, time.perf_counter()
        if self._live is not None:
            if now - self._drawn > EVERY or step >= (trainer.max_steps or 0):
                self._drawn = now
                self.bar.update(self.task, completed=step, left=self._left(trainer))
                self._live.update(self._panel(pl_module.latest))
        elif trainer.is_global_zero and pl_module.logs_now(step):
            shown = {**SHOWN, **SHOWN_VAL}
            parts = [
                f"{name} {number(pl_module.latest[key])}" for name, key in shown.items() if key in pl_module.latest
            ]
            log.info("step %d/%d  %s  %s left", step, trainer.max_steps, "  ".join(parts), self._left(trainer))

    def _left(self, trainer: Trainer) -> str:
        done = trainer.global_step - self._first
        per_step = (time.perf_counter() - self._began) / max(done, 1)
        return str(timedelta(seconds=round(per_step * ((trainer.max_steps or 0) - trainer.global_step))))

    def _panel(self, latest: dict[str, float]) -> Group:
        table = Table.grid(padding=(0, 2))
        for names in (SHOWN, SHOWN_VAL):
            there = {n: k for n, k in names.items() if k in latest}
            if there:
                table.add_row(*(f"[dim]{n}[/] {number(latest[k])}" for n, k in there.items()))
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
