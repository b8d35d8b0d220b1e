"""Trackio logs a run to its local store, or to the Space or server that its environment variables name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from shiqrun.tracking.library import expect_library, run_name, stored_id


@dataclass(frozen=True, kw_only=True)
class Trackio:
    """`Trackio` holds the settings of the Trackio logger, `conf/logger/trackio.yaml`.

    Attributes:
        project: Trackio project.
        group: name shared by runs that belong together.
        tags: words to find the run by, in the config under `tags`.

    Raises:
        InputError: the package trackio is not installed.
    """

    project: str
    group: str | None
    tags: list[str]

    def __post_init__(self) -> None:
        expect_library("trackio", "trackio", "trackio")

    def open(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        """Return a logger that goes on with the Trackio run of the run directory, or starts one.

        Args:
            run_dir: its `trackio/run_id` makes the Trackio run's name unique.
            config: the resolved config.
        """
        name = f"{run_name(run_dir)}-{stored_id(run_dir / 'trackio')}"
        shown = {**config, "tags": self.tags}
        return TrackioLogger(project=self.project, name=name, group=self.group, config=shown, resume="allow")


class TrackioLogger(Logger):
    """A Trackio logger passes metrics on to `trackio.log`; Lightning has none of its own.

    Args:
        init: arguments of `trackio.init`.
    """

    def __init__(self, **init: Any) -> None:
        super().__init__()
        self._init = init
        self._run: Any = None

    @property
    def name(self) -> str:
        """Return the name of the project, which Lightning asks for."""
        return str(self._init["project"])

    @property
    def version(self) -> str:
        """Return the name of the run, which Lightning asks for."""
        return str(self._init["name"])

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the Trackio run, which starts when it is first asked for, on rank 0."""
        if self._run is None:
            import trackio

            self._run = trackio.init(**self._init, embed=False, auto_log_gpu=False, auto_log_cpu=False)
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics at a step."""
        self.experiment.log(dict(metrics), step=step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing: `trackio.init` has the config."""
