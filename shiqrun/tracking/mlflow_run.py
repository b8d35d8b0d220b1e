"""MLflow logs a run through Lightning to the server or store that MLflow finds."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from shiqrun.tracking.library import expect_library, names_of, run_name


@dataclass(frozen=True, kw_only=True)
class MLflow:
    """`MLflow` holds the settings of the MLflow logger, `conf/logger/mlflow.yaml`.

    Attributes:
        project: MLflow experiment.
        uri: server or store; None for MLFLOW_TRACKING_URI or, without it, `mlflow.db` in the working directory.
        group: value of the tag `group`, shared by runs that belong together.
        tags: words to find the run by, each a tag of its own.

    Raises:
        InputError: the package mlflow is not installed.
    """

    project: str
    uri: str | None
    group: str | None
    tags: list[str]

    def __post_init__(self) -> None:
        expect_library("mlflow", "mlflow", "mlflow")

    def open(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        """Return a logger that goes on with the MLflow run of the run directory, or starts one.

        Args:
            run_dir: its `mlflow/run_id` keeps the MLflow run's id.
            config: the resolved config, logged as parameters when the run starts: MLflow lets none change.
        """
        stored = run_dir / "mlflow" / "run_id"
        known = stored.read_text() if stored.is_file() else None
        words = dict.fromkeys([*self.tags, *names_of(config)], "")
        logger = MLFlowLogger(
            experiment_name=self.project,
            run_name=run_name(run_dir),
            tracking_uri=self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db",
            tags={**words, **({"group": self.group} if self.group else {})},
            run_id=known,
        )
        _start(logger, stored, config)
        return logger


@rank_zero_only
def _start(logger: MLFlowLogger, stored: Path, config: dict[str, Any]) -> None:
    """Start the MLflow run and keep its id, or mark the known one as running again."""
    if stored.is_file():
        logger.experiment.update_run(logger.run_id, status="RUNNING")
        return
    logger.log_hyperparams(config)
    stored.parent.mkdir(exist_ok=True)
    stored.write_text(str(logger.run_id))
