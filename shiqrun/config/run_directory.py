"""These functions make run directories that no other run uses, and save and load the configs in them."""

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from yaml import YAMLError

from shiqrun.config.without_environment import environment_variables, without_environment
from shiqrun.errors import InputError
from shiqrun.util import slurm
from shiqrun.util.atomic import remove_dead_partials, write_atomic
from shiqrun.util.quoting import quote_for_shell
from shiqrun.util.seal import ADVICE, is_changed, sealed
from shiqrun.util.summary import is_finished

CONFIG = Path(".hydra", "config.yaml")
LOG, LOCK = "run.log", ".run.lock"
SWEEP, STATE = "multirun.yaml", "sweep.json"
PLACE_KEYS = ("run_dir", "resume", "dry_run", "hydra")
FORMER_STUBS = {"trainer": ["learning_rate"], "eval": ["max_prompts"], "values": ["samples"]}
"""Nodes that every command's config once had: with these keys alone, they had no effect."""


def make_directory(folder: Path, *, numbered: bool) -> Path:
    """Make a run directory and check that it can be written; return it.

    With `numbered` the folder is a new one: `_2`, `_3` ... is added to its name while the name is taken.

    Raises:
        InputError: the folder cannot be made or written.
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


def holds_unfinished(folder: Path, config: DictConfig) -> bool:
    """Return whether the folder holds an unfinished run of this config; False if it holds no run.

    In a SLURM job that runs again the run may be finished.

    A run that a kill or a power cut stopped while its config was written, before anything else, has not begun.

    Raises:
        InputError: it holds a finished run, a sweep, or a run with another config; the message names the differences.
    """
    _expect_no_sweep(folder)
    if not (folder / CONFIG).exists():
        return False
    if not _began(folder) and _parsed(folder / CONFIG) is None:
        what = f"{folder / CONFIG}: is damaged, and nothing was trained there yet: the run begins anew"
        print(f"shiqrun: {what}", file=sys.stderr)
        return False
    differing = list(differences(folder, config))
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise InputError(
            f"run_dir={folder}: already holds a run with another config; give another run_dir, or go on with that "
            f"run by resume={quote_for_shell(folder)} alone\n{lines}"
        )
    if is_finished(folder) and not slurm.runs_again():
        raise InputError(f"run_dir={folder}: already holds this run, finished; give another run_dir")
    return True


def expect_neither_run_nor_sweep(folder: Path) -> None:
    """Check that a sweep may be made in the folder.

    Raises:
        InputError: the folder holds a sweep or a run.
    """
    _expect_no_sweep(folder)
    if (folder / CONFIG).exists():
        raise InputError(f"run_dir={folder}: already holds a run; give another run_dir")


def load(folder: Path) -> DictConfig:
    """Return the config saved in a run directory, also of a run of a former version.

    Raises:
        InputError: there is no such directory, or no config in it; the message names the nearest run directories. Or
            its config is damaged.
    """
    file = folder / CONFIG
    if not file.is_file():
        what = "holds no .hydra/config.yaml" if folder.is_dir() else "no such directory"
        raise InputError(f"{folder}: {what}{_nearby(folder)}")
    config = _read(file)
    for node, keys in FORMER_STUBS.items():
        if isinstance(config.get(node), DictConfig) and list(config[node]) == keys:
            del config[node]
    return config


def _read(file: Path) -> DictConfig:
    """Return a saved config; a kill while Hydra wrote it, or a power cut, leaves it empty or broken.

    Raises:
        InputError: the file holds no YAML mapping, or an empty one, or has changed since it was written.
    """
    config = _parsed(file)
    if config is not None and is_changed(file.read_text(encoding="utf-8")):
        raise InputError(f"{file}: has changed since the run wrote it; {ADVICE}")
    if config is not None:
        return config
    if not _began(file.parents[1]):
        raise InputError(
            f"{file}: is damaged or empty, and nothing was trained there yet; start the run again by its command"
        )
    raise InputError(f"{file}: is damaged or empty; restore it, or start the run again in another run_dir")


def _parsed(file: Path) -> DictConfig | None:
    """Return a saved config, None where the file holds no YAML mapping or an empty one."""
    config = None
    with suppress(YAMLError, ValueError, OSError):  # OmegaConf refuses a bare number by an OSError
        config = OmegaConf.load(io.StringIO(file.read_text(encoding="utf-8")))
    return config if isinstance(config, DictConfig) and config else None


def _began(folder: Path) -> bool:
    """Return whether a run directory holds more than what is there before a run begins: config, log and lock."""
    return bool({entry.name for entry in folder.iterdir()} - {CONFIG.parts[0], LOG, LOCK})


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files that killed writers left in a run directory, beside its saved config and in it.

    Checkpoints and `experience/` remove theirs themselves.
    """
    for place in (folder, folder / CONFIG.parts[0]):
        remove_dead_partials(place)


def expect_run(config: DictConfig) -> None:
    """Check that `run=`, where a command has it, names a run, before a directory is made inside it.

    Raises:
        InputError: `run=` names no run directory.
    """
    if config.get("run"):
        load(Path(config.run))


def save(config: DictConfig, folder: Path) -> None:
    """Write the config into the run directory, atomically; values of environment variables stay out of it."""
    file = folder / CONFIG
    file.parent.mkdir(parents=True, exist_ok=True)
    resolve = not environment_variables(config)
    write_atomic(file, sealed(OmegaConf.to_yaml(without_environment(config), resolve=resolve)))


def with_run_dir(config: DictConfig, folder: Path, *, resume: bool) -> DictConfig:
    """Return the config with `run_dir` set to the run directory, and `resume` too if the run continues there."""
    changed = config.copy()
    with open_dict(changed):
        changed.run_dir = str(folder)
        changed.resume = str(folder) if resume else None
    return changed


def is_named_by_time(config: DictConfig, kind: str) -> bool:
    """Return whether the directory of a run or sweep is named by the time, so that two of one second may clash.

    Args:
        config: composed, with its `hydra` node.
        kind: "run" or "sweep".
    """
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    name = raw["hydra"][kind]["dir"]
    return "${now:" in (raw["run_dir"] if name == "${run_dir}" else name)


def discard_unused(folder: Path) -> None:
    """Remove the folder of a run or a sweep that never began, unless it holds more than config and log."""
    if {entry.name for entry in folder.iterdir()} <= {CONFIG.parts[0], LOG, SWEEP, LOCK}:
        shutil.rmtree(folder / CONFIG.parts[0], ignore_errors=True)
        for name in (LOG, SWEEP, LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def discard_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders that are empty, from the innermost outwards, up to the first that is not."""
    for folder in folders:
        if not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


def _expect_no_sweep(folder: Path) -> None:
    if (folder / SWEEP).exists():
        on = f", or go on with it: shiqrun sweep sweep.resume={quote_for_shell(folder)}" * (folder / STATE).is_file()
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


def differences(folder: Path, config: DictConfig) -> Iterator[str]:
    """Yield a line for each setting of a saved run that another config has not, places aside."""
    there, here = _leaves(load(folder)), _leaves(config)
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key, "absent"), here.get(key, "absent")
        if old != new:
            yield f"{key}: {old} there, {new} here"


def _nearby(folder: Path) -> str:
    """Return the latest three run directories under the nearest existing directory, for an error message."""
    root = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    found = [file.parent.parent for depth in ("", "*/", "*/*/") for file in root.glob(f"{depth}{CONFIG}")]
    latest = sorted(found, key=lambda run: run.stat().st_mtime)[-3:]
    return "; runs near it: " + ", ".join(map(str, reversed(latest))) if latest else ""


def default_cache_dir() -> Path:
    """Return the directory of caches: the environment variable SHIQRUN_CACHE, else ~/.cache/shiqrun."""
    return Path(os.environ.get("SHIQRUN_CACHE") or Path.home() / ".cache" / "shiqrun")
