"""A SLURM job that runs again goes on in the run directory of its former start, even if that is named by the time."""

import glob
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from shiqrun.config import run_directory as rundir
from shiqrun.util import slurm

MARK = Path(".hydra", "slurm_job")
"""The file of a run directory that names the SLURM job which made it."""


def mark(folder: Path) -> None:
    """Write into a run directory which SLURM job it belongs to; outside of SLURM do nothing."""
    if (number := slurm.job()) is not None:
        (folder / MARK).parent.mkdir(exist_ok=True)
        (folder / MARK).write_text(f"{number}\n", encoding="utf-8")


def former_directory(config: DictConfig) -> Path | None:
    """Return the directory of the same run from a former start of this SLURM job; None where there is none.

    It may be finished: a script that trains twice, and is requeued in its second run, passes over the first.

    Args:
        config: composed; its `run_dir` is named by the time.
    """
    if not slurm.runs_again():
        return None
    for folder in _of_any_time(config):
        ours = (folder / MARK).is_file() and (folder / MARK).read_text(encoding="utf-8").strip() == slurm.job()
        if ours and (folder / rundir.CONFIG).is_file() and not list(rundir.differences(folder, config)):
            return folder
    return None


def _of_any_time(config: DictConfig) -> list[Path]:
    """Return the directories that the config's `run_dir` would have named at any time, the latest first."""
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    blank = "__any_time__"
    changed = config.copy()
    with open_dict(changed):
        changed.run_dir = re.sub(r"\$\{now:[^}]*\}", blank, raw["run_dir"])
        place = Path(changed.hydra.run.dir).absolute()
    pattern = "*".join(map(glob.escape, str(place.relative_to(place.anchor)).split(blank)))
    found = {folder for end in ("", "_[0-9]*") for folder in Path(place.anchor).glob(pattern + end)}
    return sorted(found, reverse=True)
