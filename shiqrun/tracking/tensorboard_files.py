"""TensorBoard reads a run's metrics from event files in the run directory's `tensorboard/`."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _flatten_dict, _sanitize_params
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from shiqrun.tracking.library import expect_library

SHOWN = ("val/reward", "val/kl", "train/loss")
"""The metrics that TensorBoard's table of hyperparameters shows beside them."""


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """`TensorBoard` writes event files to the run directory, `conf/logger/tensorboard.yaml`; it has no settings.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __post_init__(self) -> None:
        expect_library("tensorboard", "tensorboard", "tensorboard")

    def open(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        """Return a logger to `tensorboard/`; of a resumed run it goes on after the last step of `metrics.csv`.

        Args:
            run_dir: its `tensorboard/` gets the files.
            config: the resolved config, shown as hyperparameters.
        """
        folder = run_dir / "tensorboard"
        goes_on = any(folder.glob("events.out.tfevents.*"))
        return EventFiles(run_dir, config, _last_step(run_dir / "metrics.csv") + 1 if goes_on else None)


class EventFiles(TensorBoardLogger):
    """An event-files logger writes each row to disk at once, because a killed run otherwise loses two minutes of rows.

    Args:
        run_dir: holds `tensorboard/`.
        config: the hyperparameters.
        purge_step: readers drop the rows of earlier files from this step on, which are logged again; None keeps all.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any], purge_step: int | None) -> None:
        super().__init__(run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=purge_step)
        self.hparams = config  # Lightning saves them as hparams.yaml

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the writer of event files, which starts when it is first asked for, on rank 0."""
        if self._experiment is None:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams

            writer: Any = SummaryWriter(self.log_dir, **self._kwargs)
            writer.purge_step = None  # else a file that is opened after the end drops the last rows once more
            flat = _sanitize_params(_flatten_dict(dict(self.hparams)))
            for part in hparams(flat, dict.fromkeys(SHOWN, 0.0)):
                writer.file_writer.add_summary(part)
            self._experiment = writer
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics at a step, and put them on disk."""
        super().log_metrics(dict(metrics), step)
        self.experiment.flush()


def _last_step(path: Path) -> int:
    """Return the last step in `metrics.csv`, which a resumed run has cut to its checkpoint; -1 where there is none."""
    if not path.is_file():
        return -1
    with path.open(newline="", encoding="utf-8") as file:
        return max((int(row["step"]) for row in csv.DictReader(file)), default=-1)
