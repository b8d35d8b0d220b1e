"""A sweep's grid is planned from overrides with several values; its jobs then run in processes of their own."""

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
from shiqrun.config.process import SAVED_BY_HYDRA, saved_by_hydra
from shiqrun.console import console, count_of, say_next
from shiqrun.errors import InputError
from shiqrun.sweeping.run import Runner
from shiqrun.sweeping.state import Job, Sweep, load, summary
from shiqrun.sweeping.study import change_search
from shiqrun.sweeping.view import jobs_table
from shiqrun.util.quoting import as_override, quote_for_shell, unquote

log = logging.getLogger("shiqrun")
COMMAND, COMPARE, JOBS_OF_IT = "sweep", "compare", "train"
OWN_COMMANDS = (COMMAND, COMPARE)
"""The commands whose jobs are those of `shiqrun train`."""
OWN_PLUGINS = {
    "launcher": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "sweeper": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
KEYS_OF_SWEEP = ("run_dir", "sweep", "compare")
KEYS_OF_ALL_JOBS = ("run_dir", "resume", "cache_dir", "dry_run", "sweep", "compare")
KEYS_OF_HYDRA = (
    "hydra.sweep",
    "hydra.run",
    "hydra.mode",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra.sweeper",
)
LONGEST_NAME = 100  # characters of a folder's name, the limit of the resolver `slug`
LONGEST_GROUP = 128  # characters of a W&B group, a limit of W&B

Composed = Sequence[tuple[Sequence[str], DictConfig]]
"""The overrides and the composed, checked config of every job."""


def uses_own_launcher(config: DictConfig) -> bool:
    """Return whether the sweep runs its jobs itself, because no other launcher or sweeper of Hydra's was chosen."""
    return all(config.hydra[node].get("_target_") == name for node, name in OWN_PLUGINS.items())


def swept_keys(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return the keys with several values, in the order given, those of `hydra.sweeper.params` included.

    Raises:
        InputError: a key that all jobs share has several values.
    """
    asked = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    final = {override.get_key_element(): override for override in _parse([*asked, *overrides])}
    keys = [key for key, override in final.items() if override.is_sweep_override()]
    for key in keys:
        if _is_under(key, KEYS_OF_ALL_JOBS):
            value = str(final[key].input_line).partition("=")[2]
            raise InputError(
                f"{key}: met several values ({value}), expected one, which all jobs share; put a value that contains a "
                f"comma in quotes inside those of the shell: {key}=\"'{value}'\""
            )
    return keys


def plan_sweep(name: str, each: Composed, keys: Sequence[str], typed: Sequence[str]) -> Sweep:
    """Return the sweep that a command line asks for; it has no directory yet, and nothing is written.

    Args:
        name: the command.
        each: its jobs.
        keys: the swept keys.
        typed: the words after the command, as typed.

    Raises:
        InputError: two jobs would get the same folder.
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
    command = JOBS_OF_IT if name in OWN_COMMANDS else name
    return Sweep(Path(), command, [name, *typed], str(Path.cwd()), fixed, jobs)


def swept_values(words: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """Return the values that a job's overrides give to the swept keys, by key."""
    return {override.get_key_element().lstrip("+"): _text(override) for override in _parse(words, keys)}


def words_for_jobs(words: Sequence[str]) -> list[str]:
    """Return the overrides that each job gets: those for the sweep as a whole are left out."""
    return [word for word in words if not _is_under(word, (*KEYS_OF_SWEEP, *KEYS_OF_HYDRA))]


def words_for_launcher(words: Sequence[str]) -> list[str]:
    """Return the overrides of `shiqrun sweep` that `shiqrun train -m` takes, for a launcher of Hydra's."""
    return [word for word in words if not _is_under(word, KEYS_OF_SWEEP)]


def place(sweep: Sweep, folder: Path, each: Composed, config_dir: str | None) -> Sweep:
    """Return the sweep with its directory: its jobs get W&B's group and tags, and the folder of further YAML."""
    sweep.folder = folder
    for job, (_, config) in zip(sweep.jobs, each, strict=True):
        of_logger = labels(config, job.swept, folder)
        job.words += [f"logger.{key}={as_override(value)}" for key, value in of_logger.items()]
        job.words += ["--config-dir", str(Path(config_dir).absolute())] if config_dir else []
    return sweep


def labels(config: DictConfig, swept: dict[str, str], folder: Path) -> dict[str, Any]:
    """Return W&B's group and tags for a job of a sweep; empty where the logger has no groups."""
    logger = config.get("logger")
    if logger is None or "group" not in logger:
        return {}
    group = logger.group or "/".join(folder.absolute().parts[-2:])[-LONGEST_GROUP:]
    return {"group": group, "tags": [*logger.tags, *(f"{key}={value}" for key, value in swept.items())]}


def with_labels(config: DictConfig, words: Sequence[str], keys: Sequence[str], folder: Path) -> DictConfig:
    """Return a job's config with W&B's group and tags, for a job that a launcher of Hydra's runs."""
    config = config.copy()
    for key, value in labels(config, swept_values(words, keys), folder).items():
        config.logger[key] = value
    return config


def run(sweep: Sweep, config: DictConfig, program: Sequence[str] | None) -> int:
    """Run a new sweep in its directory; return the exit code."""
    OmegaConf.save(config, sweep.folder / rundir.SWEEP)
    return _run(sweep, program, config.sweep.parallel if "sweep" in config else 1)


def resume(overrides: Sequence[str], program: Sequence[str] | None) -> int | None:
    """Continue the sweep of `sweep.resume=DIR`; return the exit code, or None if `sweep.resume` was not given.

    Raises:
        InputError: other settings were given too, or the directory holds no sweep of this format.
    """
    given = {_key(word): unquote(word.partition("=")[2]) for word in overrides}
    if given.get("resume", "null") not in ("", "null"):
        raise InputError("resume=DIR goes on with one run (shiqrun train); a sweep goes on with sweep.resume=DIR")
    folder = given.pop("sweep.resume", "null")
    if folder in ("", "null"):
        return None
    parallel = given.pop("sweep.parallel", "1")
    if not parallel.isdecimal() or not int(parallel):
        raise InputError(f"sweep.parallel: met {parallel!r}, expected a whole number greater than 0")
    sweep = load(Path(folder).absolute())
    if sweep.search is not None:
        change_search(sweep.folder, sweep.search, given)
    if given:
        others = [word for word in overrides if _key(word) in given]
        too = "" if sweep.search is None else ", sweep.trials and sweep.metric"
        raise InputError(
            f"sweep.resume={folder}: goes on with the settings of that sweep, so nothing but sweep.parallel{too} can "
            f"be set; leave out {', '.join(others)}"
        )
    return _run(sweep, program, int(parallel))


def collect_results(sweep: Sweep, folder: Path) -> int:
    """Record how the jobs of a launcher of Hydra's ended, from what they left; return the exit code."""
    sweep.folder = folder
    saved = [(saved_by_hydra(file), file) for file in folder.rglob(SAVED_BY_HYDRA.as_posix())]
    places = {config.hydra.job.get("num"): file.parents[1] for config, file in saved if config is not None}
    for job in sweep.jobs:
        place = places.get(job.number) or next(folder.glob(f"{job.number}_*/"), sweep.directory_of(job))
        job.dir = str(place.relative_to(folder))
        values = summary(sweep.directory_of(job))
        job.status, job.seconds = ("finished" if values else "failed"), values.get("seconds", 0.0)
        job.error = [] if values else [f"see {job.dir}/{rundir.LOG}"]
    sweep.save()
    _conclude(sweep)
    return int(any(job.status == "failed" for job in sweep.jobs))


def print_jobs(sweep: Sweep) -> None:
    """Print the sweep's jobs, which is what a dry run does."""
    console.print(jobs_table(sweep))


def _run(sweep: Sweep, program: Sequence[str] | None, parallel: int) -> int:
    chosen: type[Runner] = Runner
    if sweep.search is not None:
        from shiqrun.sweeping.search_run import SearchRunner as chosen  # noqa: N813  # Optuna only for a search
    code = chosen(sweep, program or [sys.executable, "-m", "shiqrun", sweep.command], parallel).run()
    _conclude(sweep, parallel)
    return code


def _conclude(sweep: Sweep, parallel: int = 1) -> None:
    """Write the sweep's tables and report, and print how to continue."""
    from shiqrun.sweeping.outcome import conclude

    drawn: list[Path] = [sweep.folder]
    best: list[str] = []
    if sweep.search is None:
        conclude(sweep)
    else:
        from shiqrun.sweeping.trials import conclude_search

        drawn, best = conclude_search(sweep)
    page = None
    if sweep.command == JOBS_OF_IT and sweep.finished_jobs() and drawn:
        try:
            from shiqrun.report.run_report import write_report

            page = write_report(drawn, sweep.folder / "report.html")
        except Exception as error:  # the runs are there, and the page can be made again
            log.warning("no report: %s; later: shiqrun report %s", error, shlex.quote(str(sweep.folder)))
    console.print(sweep.folder / "sweep.csv", highlight=False, soft_wrap=True)
    if best:
        words = shlex.join(["shiqrun", sweep.command, *best])
        console.print(f"the best again:  {words}", highlight=False, markup=False, soft_wrap=True)
    _say_what_is_left(sweep, parallel)
    if page is not None:
        say_next(f"open {page}")


def _say_what_is_left(sweep: Sweep, parallel: int) -> None:
    """Print how to go on with the jobs that are not finished; a search does not repeat those that failed."""
    left = sweep.expected - sweep.count("finished") - (sweep.count("failed") if sweep.search is not None else 0)
    if left:
        how = f"{left} of {count_of(sweep.expected, 'job')} {'is' if left == 1 else 'are'} not finished; to go on:  "
        how += f"shiqrun sweep sweep.resume={quote_for_shell(sweep.folder)}" + f" sweep.parallel={parallel}" * (
            parallel > 1
        )
        console.print(how, highlight=False, markup=False, soft_wrap=True)


def _parse(words: Sequence[str], keys: Sequence[str] | None = None) -> list[Override]:
    parsed = OverridesParser.create().parse_overrides(list(words))
    return [override for override in parsed if keys is None or override.get_key_element() in keys]


def _key(word: str) -> str:
    return word.partition("=")[0]


def _is_under(word: str, names: Sequence[str]) -> bool:
    """Return whether an override sets one of the keys, or a key inside one of them."""
    key = _key(word).lstrip("+~")
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _text(override: Override) -> str:
    """Return the value of an override as a person wrote it, without quotes."""
    value = override.value()
    return value if isinstance(value, str) else str(override.get_value_element_as_str())


def _folder(number: int, words: Sequence[str], job: DictConfig, keys: Sequence[str]) -> str:
    """Return a job's folder, as `hydra.sweep.subdir` names it: swept keys first, shared ones where there is room."""
    hidden = {*job.hydra.job.config.override_dirname.exclude_keys}
    ordered = sorted(_parse(words), key=lambda override: override.get_key_element() not in keys)
    shown = [o for o in ordered if o.get_key_element() not in hidden and not o.is_hydra_override()]
    shown = [o for o in shown if not _is_under(o.get_key_element(), KEYS_OF_SWEEP)]
    dirname = _dirname(shown)
    with open_dict(job.hydra.job):
        job.hydra.job.num = number
        if len(f"{number}_{dirname}") > LONGEST_NAME:
            dirname = _dirname([o for o in shown if o.get_key_element() in keys])
        job.hydra.job.override_dirname = dirname
    return str(job.hydra.sweep.subdir)


def _dirname(overrides: Sequence[Override]) -> str:
    return ",".join(f"{o.get_key_element()}={_text(o)}" for o in overrides)
