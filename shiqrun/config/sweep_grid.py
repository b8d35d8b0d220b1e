"""From overrides with several values to a sweep whose jobs are processes of their own, and back from its directory."""

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from shiqrun.config import run_directory as rundir
from shiqrun.console import console, count_of
from shiqrun.errors import InputError
from shiqrun.sweeping.run import Runner
from shiqrun.sweeping.state import Job, Sweep, load, summary
from shiqrun.sweeping.view import jobs_table
from shiqrun.util.quoting import as_override, for_shell, unquote

log = logging.getLogger("shiqrun")
COMMAND, JOBS_OF_IT = "sweep", "train"
OURS = {
    "launcher": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "sweeper": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
OF_THE_SWEEP = ("run_dir", "sweep")
OF_ALL_JOBS = ("run_dir", "resume", "cache_dir", "dry_run", "sweep")
OF_HYDRA = (
    "hydra.sweep",
    "hydra.run",
    "hydra.mode",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra.sweeper",
)
LONGEST_NAME = 100  # characters of a folder, as `slug` has it
LONGEST_GROUP = 128  # characters of a W&B group

Composed = Sequence[tuple[Sequence[str], DictConfig]]
"""Each job's overrides and its config, composed and checked."""


def is_ours(config: DictConfig) -> bool:
    """Whether neither another launcher nor another sweeper of Hydra's was chosen."""
    return all(config.hydra[node].get("_target_") == name for node, name in OURS.items())


def swept_keys(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The keys with several values, in the order given; also those of `hydra.sweeper.params`.

    Raises:
        InputError: one that all jobs share has several.
    """
    asked = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    final = {override.get_key_element(): override for override in _parsed([*asked, *overrides])}
    keys = [key for key, override in final.items() if override.is_sweep_override()]
    for key in keys:
        if _begins(key, OF_ALL_JOBS):
            value = str(final[key].input_line).partition("=")[2]
            raise InputError(
                f"{key}: met several values ({value}), expected one, which all jobs share; a value with a comma "
                f"stands in quotes inside the shell's: {key}=\"'{value}'\""
            )
    return keys


def planned(name: str, each: Composed, keys: Sequence[str], typed: Sequence[str]) -> Sweep:
    """The sweep that a command line asks for, in no directory yet; nothing is made.

    Args:
        name: the command.
        each: its jobs.
        keys: what is swept.
        typed: the words after the command, as given.

    Raises:
        InputError: two jobs would have one folder.
    """
    fixed = [word for word in words_for_jobs(each[0][0]) if _key(word) not in keys]
    folders = [_folder(number, words, job, keys) for number, (words, job) in enumerate(each)]
    if len(set(folders)) < len(folders):
        raise InputError("hydra.sweep.subdir gives two jobs one folder; put ${hydra.job.num} into it")
    jobs = []
    for number, (words, job) in enumerate(each):
        trainer, hardware = job.get("trainer") or {}, job.get("hardware") or {}
        on_gpu = hardware.get("accelerator") in ("gpu", "auto")
        jobs.append(
            Job(
                number,
                folders[number],
                words_for_jobs(words),
                swept_values(words, keys),
                max_steps=trainer.get("max_steps"),
                max_epochs=trainer.get("max_epochs"),
                gpus=hardware.get("devices", 1) if on_gpu else 0,
            )
        )
    command = JOBS_OF_IT if name == COMMAND else name
    return Sweep(Path(), command, [name, *typed], str(Path.cwd()), fixed, jobs)


def swept_values(words: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """What a job's overrides say of the swept keys."""
    return {override.get_key_element().lstrip("+"): _text(override) for override in _parsed(words, keys)}


def words_for_jobs(words: Sequence[str]) -> list[str]:
    """The overrides without those that are for the sweep as a whole."""
    return [word for word in words if not _begins(word, (*OF_THE_SWEEP, *OF_HYDRA))]


def words_for_launcher(words: Sequence[str]) -> list[str]:
    """The overrides of `shiqrun sweep` as `shiqrun train -m` takes them."""
    return [word for word in words if not _begins(word, OF_THE_SWEEP)]


def placed(sweep: Sweep, folder: Path, each: Composed, config_dir: str | None) -> Sweep:
    """The sweep in its directory; its jobs know W&B's group and tags and where further YAML is."""
    sweep.folder = folder
    for job, (_, config) in zip(sweep.jobs, each, strict=True):
        told = labels(config, job.swept, folder)
        job.words += [f"logger.{key}={as_override(value)}" for key, value in told.items()]
        job.words += ["--config-dir", str(Path(config_dir).absolute())] if config_dir else []
    return sweep


def labels(config: DictConfig, swept: dict[str, str], folder: Path) -> dict[str, Any]:
    """W&B's group and tags for a job of a sweep; empty where it has no such logger."""
    logger = config.get("logger")
    if logger is None or "group" not in logger:
        return {}
    group = logger.group or "/".join(folder.absolute().parts[-2:])[-LONGEST_GROUP:]
    return {"group": group, "tags": [*logger.tags, *(f"{key}={value}" for key, value in swept.items())]}


def labelled(config: DictConfig, words: Sequence[str], keys: Sequence[str], folder: Path) -> DictConfig:
    """A job's config with W&B's group and tags, where another launcher runs it."""
    config = config.copy()
    for key, value in labels(config, swept_values(words, keys), folder).items():
        config.logger[key] = value
    return config


def run(sweep: Sweep, config: DictConfig, program: Sequence[str] | None) -> int:
    """Runs a new sweep in its directory; returns the exit code."""
    OmegaConf.save(config, sweep.folder / rundir.SWEEP)
    return _run(sweep, program, config.sweep.parallel if "sweep" in config else 1)


def resumed(overrides: Sequence[str], program: Sequence[str] | None) -> int | None:
    """Goes on with the sweep of `sweep.resume=DIR`; returns the exit code, None if that was not given.

    Raises:
        InputError: other settings beside it, or a directory that holds no sweep of this format.
    """
    given = {_key(word): unquote(word.partition("=")[2]) for word in overrides}
    if given.get("resume", "null") not in ("", "null"):
        raise InputError("resume=DIR goes on with one run (shiqrun train); a sweep goes on with sweep.resume=DIR")
    folder = given.pop("sweep.resume", "null")
    if folder in ("", "null"):
        return None
    parallel = given.pop("sweep.parallel", "1")
    if given:
        others = [word for word in overrides if _key(word) in given]
        raise InputError(
            f"sweep.resume={folder}: goes on with the settings of that sweep, so nothing but sweep.parallel can be "
            f"set: {', '.join(others)}"
        )
    if not parallel.isdecimal() or not int(parallel):
        raise InputError(f"sweep.parallel: met {parallel!r}, expected a whole number greater than 0")
    sweep = load(Path(folder).absolute())
    return _run(sweep, program, int(parallel))


def collected(sweep: Sweep, folder: Path) -> int:
    """Takes down what another launcher's jobs left; returns the exit code."""
    sweep.folder = folder
    saved = [(OmegaConf.load(file), file) for file in folder.rglob(".hydra/hydra.yaml")]
    places = {config.hydra.job.num: file.parents[1] for config, file in saved}
    for job in sweep.jobs:
        job.dir = str(places[job.number].relative_to(folder)) if job.number in places else job.dir
        values = summary(sweep.place(job))
        job.status, job.seconds = ("finished" if values else "failed"), values.get("seconds", 0.0)
        job.error = [] if values else [f"see {job.dir}/{rundir.LOG}"]
    sweep.save()
    _conclude(sweep)
    return int(any(job.status == "failed" for job in sweep.jobs))


def show(sweep: Sweep) -> None:
    """Prints the grid: the end of a dry run."""
    console.print(jobs_table(sweep))


def _run(sweep: Sweep, program: Sequence[str] | None, parallel: int) -> int:
    code = Runner(sweep, program or [sys.executable, "-m", "shiqrun", sweep.command], parallel).run()
    _conclude(sweep, parallel)
    return code


def _conclude(sweep: Sweep, parallel: int = 1) -> None:
    """The tables, the page, and how to go on."""
    from shiqrun.sweeping.outcome import conclude

    conclude(sweep)
    if sweep.command == JOBS_OF_IT and sweep.finished():
        try:
            from shiqrun.report.run_report import write_report

            console.print(write_report([sweep.folder]), highlight=False, soft_wrap=True)
        except Exception as error:  # the runs are there, and the page can be made again
            log.warning("no report: %s; later: shiqrun report %s", error, shlex.quote(str(sweep.folder)))
    console.print(sweep.folder / "sweep.csv", highlight=False, soft_wrap=True)
    if any(job.status != "finished" for job in sweep.jobs):
        left = len(sweep.jobs) - sweep.count("finished")
        told = f"{left} of {count_of(len(sweep.jobs), 'job')} {'is' if left == 1 else 'are'} not finished; to go on:  "
        told += f"shiqrun sweep sweep.resume={for_shell(sweep.folder)}" + f" sweep.parallel={parallel}" * (parallel > 1)
        console.print(told, highlight=False, markup=False, soft_wrap=True)


def _parsed(words: Sequence[str], keys: Sequence[str] | None = None) -> list[Override]:
    parsed = OverridesParser.create().parse_overrides(list(words))
    return [override for override in parsed if keys is None or override.get_key_element() in keys]


def _key(word: str) -> str:
    return word.partition("=")[0]


def _begins(word: str, names: Sequence[str]) -> bool:
    key = _key(word).lstrip("+~")
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _text(override: Override) -> str:
    """The value as a person wrote it, without quotes."""
    value = override.value()
    return value if isinstance(value, str) else str(override.get_value_element_as_str())


def _folder(number: int, words: Sequence[str], job: DictConfig, keys: Sequence[str]) -> str:
    """As `hydra.sweep.subdir` names it, what is swept first; what all jobs share only where there is room for it."""
    hidden = {*job.hydra.job.config.override_dirname.exclude_keys}
    ordered = sorted(_parsed(words), key=lambda override: override.get_key_element() not in keys)
    shown = [o for o in ordered if o.get_key_element() not in hidden and not o.is_hydra_override()]
    shown = [o for o in shown if not _begins(o.get_key_element(), OF_THE_SWEEP)]
    dirname = _dirname(shown)
    with open_dict(job.hydra.job):
        job.hydra.job.num = number
        if len(f"{number}_{dirname}") > LONGEST_NAME:
            dirname = _dirname([o for o in shown if o.get_key_element() in keys])
        job.hydra.job.override_dirname = dirname
    return str(job.hydra.sweep.subdir)


def _dirname(overrides: Sequence[Override]) -> str:
    return ",".join(f"{o.get_key_element()}={_text(o)}" for o in overrides)
