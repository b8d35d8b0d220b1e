"""Run directories: making one that is nobody else's, the config saved in it, and what an earlier run left there."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from shiqrun.errors import InputError
from shiqrun.util.atomic import atomic_writer
from shiqrun.util.quoting import for_shell

CONFIG = Path(".hydra", "config.yaml")
SUMMARY = "summary.json"
LOG = "run.log"
SWEEP, STATE = "multirun.yaml", "sweep.json"
PLACE_KEYS = ("run_dir", "resume", "dry_run", "hydra")
FORMER_STUBS = {"trainer": ["learning_rate"], "eval": ["max_prompts"], "values": ["samples"]}
"""Nodes that every command's config once had: with these keys alone, they had no effect."""


def reserve(folder: Path, *, numbered: bool) -> Path:
    """The folder, made and writable; with `numbered`, a new one: `_2`, `_3` ... is added while the name is taken.

    Raises:
        InputError: it cannot be made or written.
    """
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir(parents=True, exist_ok=not numbered)
            with tempfile.TemporaryFile(dir=candidate):
                return candidate
        except FileExistsError as error:
            if not (numbered and candidate.is_dir()):
                raise InputError(f"run_dir={candidate}: is a file, expected a directory") from error
            number += 1
            candidate = folder.with_name(f"{folder.name}_{number}")
        except OSError as error:
            raise InputError(
                f"run_dir={candidate}: cannot be written ({error.strerror}); give another run_dir"
            ) from error


def unfinished(folder: Path, config: DictConfig) -> bool:
    """True if the folder holds a run of this config that has not ended, False if it holds no run.

    Raises:
        InputError: it holds a finished run, a sweep, or a run with another config; the keys that differ are named.
    """
    _expect_no_sweep(folder)
    if not (folder / CONFIG).exists():
        return False
    differences = list(_differences(_leaves(load(folder)), _leaves(config)))
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise InputError(
            f"run_dir={folder}: already holds a run with another config; give another run_dir, or go on with that "
            f"run by resume={for_shell(folder)} alone\n{lines}"
        )
    if (folder / SUMMARY).exists():
        raise InputError(f"run_dir={folder}: already holds this run, finished; give another run_dir")
    return True


def free_for_sweep(folder: Path) -> None:
    """Nothing, if the folder holds neither a sweep nor a run.

    Raises:
        InputError: it holds one.
    """
    _expect_no_sweep(folder)
    if (folder / CONFIG).exists():
        raise InputError(f"run_dir={folder}: already holds a run; give another run_dir")


def load(folder: Path) -> DictConfig:
    """The config saved in a run directory.

    Raises:
        InputError: no such directory, or nothing saved in it; the nearest run directories are named.
    """
    file = folder / CONFIG
    if not file.is_file():
        what = "holds no .hydra/config.yaml" if folder.is_dir() else "no such directory"
        raise InputError(f"{folder}: {what}{_nearby(folder)}")
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    for node, keys in FORMER_STUBS.items():
        if isinstance(config.get(node), DictConfig) and list(config[node]) == keys:
            del config[node]
    return config


def expect_run(config: DictConfig) -> None:
    """Nothing, if `run=`, where a command has it, names a run: said before a directory is made inside it.

    Raises:
        InputError: it does not.
    """
    if config.get("run"):
        load(Path(config.run))


def save(config: DictConfig, folder: Path) -> None:
    """Writes the config, every interpolation resolved, at once or not at all."""
    file = folder / CONFIG
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(file) as draft:
        OmegaConf.save(config, draft, resolve=True)


def placed(config: DictConfig, folder: Path, *, resume: bool) -> DictConfig:
    """The config with `run_dir` set to where the run is, and `resume` to the same if it goes on there."""
    placed_config = config.copy()
    with open_dict(placed_config):
        placed_config.run_dir = str(folder)
        placed_config.resume = str(folder) if resume else None
    return placed_config


def discard(folder: Path) -> None:
    """Takes back a folder made for a run or a sweep that never began, unless it holds more than config and log."""
    if {entry.name for entry in folder.iterdir()} <= {CONFIG.parts[0], LOG, SWEEP}:
        shutil.rmtree(folder / CONFIG.parts[0], ignore_errors=True)
        for name in (LOG, SWEEP):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def discard_empty(folders: Sequence[Path]) -> None:
    """Takes back folders made on the way to one that was discarded, from the innermost on."""
    for folder in folders:
        if not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


def _expect_no_sweep(folder: Path) -> None:
    if (folder / SWEEP).exists():
        on = f", or go on with it: shiqrun sweep sweep.resume={for_shell(folder)}" * (folder / STATE).is_file()
        raise InputError(f"run_dir={folder}: already holds a sweep; give another run_dir{on}")


def _leaves(config: DictConfig) -> dict[str, Any]:
    compared = OmegaConf.masked_copy(config, [str(key) for key in config if key not in PLACE_KEYS])
    values = OmegaConf.to_container(compared, resolve=True)
    assert isinstance(values, dict)
    return dict(_flat("", values))


def _flat(prefix: str, values: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def _differences(there: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key, "absent"), here.get(key, "absent")
        if old != new:
            yield f"{key}: {old} there, {new} here"


def _nearby(folder: Path) -> str:
    """The run directories under the nearest directory that exists, the latest three."""
    root = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    found = [file.parent.parent for depth in ("", "*/", "*/*/") for file in root.glob(f"{depth}{CONFIG}")]
    latest = sorted(found, key=lambda run: run.stat().st_mtime)[-3:]
    return "; runs near it: " + ", ".join(map(str, reversed(latest))) if latest else ""


def default_cache_dir() -> Path:
    """SHIQRUN_CACHE, else ~/.cache/shiqrun."""
    return Path(os.environ.get("SHIQRUN_CACHE") or Path.home() / ".cache" / "shiqrun")
