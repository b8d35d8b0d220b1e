"""Weights & Biases through Lightning's logger: online where there is a key, offline by itself where there is none."""

import logging
import netrc
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger

log = logging.getLogger("shiqrun")


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Keys of `conf/logger/wandb.yaml`.

    Attributes:
        project: W&B project.
        entity: W&B team or user, None for the key's default.
        group: name shared by runs that belong together.
        tags: words to find the run by.
    """

    project: str
    entity: str | None
    group: str | None
    tags: list[str]

    def open(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        """A logger that goes on with the run directory's W&B run, or starts one.

        Args:
            run_dir: files go to its `wandb/`; the run's id is kept there.
            config: resolved, shown on the dashboard.
        """
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        folder = run_dir / "wandb"
        folder.mkdir(exist_ok=True)
        stored = folder / "run_id"
        if not stored.is_file():
            stored.write_text(uuid.uuid4().hex[:12])
        logger = WandbLogger(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            name="/".join(run_dir.resolve().parts[-2:]),
            id=stored.read_text(),
            save_dir=run_dir,
            resume="allow",
            mode=mode,
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        if mode == "offline":
            log.info("W&B is offline: upload later with  wandb sync %s/offline-run-*", folder)
        return logger


def has_key() -> bool:
    """Whether W&B would find an API key without asking: in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def close(exit_code: int = 0) -> None:
    """Ends the W&B run of this process, so that the next job does not write into it."""
    import sys

    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)
