"""Weights & Biases logs a run through Lightning: online if a key and a server are found, else offline."""

import json
import logging
import netrc
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from shiqrun.tracking.library import names_of, run_name, stored_id
from shiqrun.tracking.panels import is_main

log = logging.getLogger("shiqrun")
TABLE, AXIS = "completions", "trainer/global_step"
COLUMNS = {
    "step": "step",
    "prompt": "prompt",
    "completion": "completion",
    "reward": "reward",
    "ref_completion": "reference_completion",
    "ref_reward": "reference_reward",
}
"""The columns of the table of completions, and the key of each in a row of `samples.jsonl`."""
PATIENCE_SECONDS = 20.0
"""Seconds that a server may take to answer before the run goes on offline, unless WANDB_INIT_TIMEOUT is set."""
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""The hosts that a key may be for where no server is named: W&B's own, under its former and its present name."""
LONGEST_TAG = 64  # characters; W&B refuses more


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """`Wandb` holds the settings of the W&B logger, `conf/logger/wandb.yaml`.

    Attributes:
        project: W&B project.
        entity: W&B team or user, None for the key's default.
        group: name shared by runs that belong together.
        job_type: kind of run within the group, None for the algorithm's name.
        tags: words to find the run by, beside the names of the algorithm and the data.
        panels: which metrics W&B draws by itself: main (those of `panels.MAIN`) or all; it logs all of them.
    """

    project: str
    entity: str | None
    group: str | None
    job_type: str | None
    tags: list[str]
    panels: Literal["main", "all"] = "main"

    def open(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        """Return a logger that resumes the W&B run of the run directory, or starts one.

        Args:
            run_dir: its `wandb/` gets the files and the W&B run's id.
            config: the resolved config, which the dashboard shows.
        """
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        names = names_of(config)
        tags = dict.fromkeys(tag[:LONGEST_TAG] for tag in (*self.tags, *names) if tag)
        return Dashboard(
            run_dir,
            self.panels == "main",
            project=self.project,
            entity=self.entity,
            group=self.group,
            job_type=self.job_type or (names[0] if names else None),
            tags=list(tags),
            name=run_name(run_dir),
            id=stored_id(run_dir / "wandb", _id_of_agent()),
            save_dir=run_dir,
            resume="allow",
            mode=mode,
            config=config,
        )


class Dashboard(WandbLogger):
    """A dashboard logs to a W&B run, with steps named as in TRL and Lightning and a growing table of completions.

    Args:
        run_dir: holds `samples.jsonl`.
        hides: W&B draws a panel by itself for the main metrics alone.
        init: arguments of `WandbLogger`.
    """

    def __init__(self, run_dir: Path, hides: bool, **init: Any) -> None:
        super().__init__(**init)
        self._run_dir, self._hides = run_dir, hides
        self._known: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the W&B run, which starts when it is first asked for, on rank 0."""
        if self._experiment is None:
            self._experiment = _start_run(self._wandb_init, self._run_dir / "wandb")
            for name in ("train/global_step", AXIS):
                self._experiment.define_metric(name, hidden=True)  # an axis needs no panel of its own
            self._experiment.define_metric("*", step_metric=AXIS, step_sync=True)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics at a step, under the names that TRL and Lightning give the step."""
        steps = {} if step is None else {"train/global_step": step, AXIS: step}
        new = set(metrics) - self._known if self._hides else set()
        for name in sorted(new):
            if not is_main(name):
                self.experiment.define_metric(name, step_metric=AXIS, step_sync=True, hidden=True)
        self._known |= new
        self.experiment.log({**metrics, **steps})

    @rank_zero_only
    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table of these completions and of those of earlier steps, which `samples.jsonl` holds.

        Each table holds all rows, because W&B's incremental tables begin anew with an offline run's second session.
        """
        import wandb

        every = [*_earlier(self._run_dir / "samples.jsonl", step), *rows]
        table = wandb.Table(columns=list(COLUMNS), data=[[row.get(key) for key in COLUMNS.values()] for row in every])
        self.log_metrics({TABLE: table}, step)


def log_samples(logger: Logger, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add an evaluation's rows of `samples.jsonl` to the dashboard's table; do nothing for other loggers."""
    if isinstance(logger, Dashboard):
        logger.log_samples(step, rows)


def _id_of_agent() -> str | None:
    """Return the id that an agent of a W&B sweep has given to this run, None outside of one."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def _earlier(path: Path, step: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of `samples.jsonl` of steps before `step`."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            rows = (json.loads(line) for line in file)
            yield from (row for row in rows if row["step"] < step)


def _start_run(init: dict[str, Any], folder: Path) -> Any:
    """Start or resume a W&B run, offline where no server takes it."""
    import wandb

    patience: dict[str, Any] = {} if "WANDB_INIT_TIMEOUT" in os.environ else {"init_timeout": PATIENCE_SECONDS}
    quiet = wandb.Settings(silent=True, console="off", **patience)
    asked = {key: value for key, value in init.items() if key != "anonymous"}  # Lightning sets it, and W&B warns of it
    offline = init["mode"] == "offline"
    try:
        run = wandb.init(**asked, settings=quiet)
    except wandb.errors.Error as error:
        log.warning("W&B refused this run, which goes on offline: %s", str(error).partition("\n")[0])
        wandb.teardown()  # else its service, which knows the id, says that it is in use
        os.environ.pop("WANDB_SERVICE", None)
        run, offline = wandb.init(**{**asked, "mode": "offline"}, settings=quiet), True
    if offline:
        log.info("W&B is offline: upload later with  wandb sync %s/offline-run-*", shlex.quote(str(folder)))
    return run


def has_key() -> bool:
    """Return whether W&B would find an API key without asking: in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL")
    hosts = [urlparse(server).hostname or ""] if server else HOSTS
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        known = netrc.netrc(path)
        return any(known.authenticators(host) is not None for host in hosts)
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
