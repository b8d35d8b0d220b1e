"""A command line to runs: Hydra around a command's `run(config, run_dir)`, resume, sweeps, ranks and exit codes.

Hydra parses, composes, makes the run directory and logs. Everything that can be wrong with a config is found before
it does: the config is composed and checked first, so that a mistake leaves no run directory behind.
"""

import os
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from shiqrun.config import run_directory as rundir
from shiqrun.config import sweep_grid as grid
from shiqrun.config.compose import composed, explained, jobs, spelled
from shiqrun.config.of_run import with_data_of_run
from shiqrun.config.process import close_log, environment, leave_process_group
from shiqrun.config.sources import CONFIG_MODULE, user_folders
from shiqrun.config.validate import check
from shiqrun.errors import InputError, Interrupted, TrainingError
from shiqrun.util.quoting import as_override, for_shell, unquote

CHILD_CONFIG = "SHIQRUN_CHILD_CONFIG"
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def launch(
    name: str, argv: Sequence[str], *, module: str, writes: bool = True, program: Sequence[str] | None = None
) -> int:
    """Runs `module.run` for every job that the words after the command ask for.

    Args:
        name: the command, and the name of its config.
        argv: overrides and Hydra's flags, in any order.
        module: has `run(config: DictConfig, run_dir: Path) -> None` and `SCHEMA`; imported only for a run.
        writes: False gives `run` a directory that vanishes.
        program: the words that start a job of a sweep in a process of its own; by default `python -m shiqrun`.

    Returns:
        The exit code: 0, 1 failed, 2 input that cannot work, 130 interrupted.
    """
    work = _Work(name, module, kept=writes, program=program)
    try:
        if os.environ.get("LOCAL_RANK", "0") != "0" and CHILD_CONFIG in os.environ:
            return work.as_rank(Path(os.environ[CHILD_CONFIG]))
        with environment(HYDRA_FULL_ERROR="1"):  # Hydra hands over its errors instead of printing and leaving
            return _dispatch(argv, work)
    except InputError as error:
        _tell(f"error: {error}")
        return WRONG_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


@dataclass
class _Work:
    """The jobs of one command line.

    Attributes:
        name: the command.
        module: where its `run` and `SCHEMA` are.
        kept: False if what it writes vanishes.
        program: what starts a job of a sweep in a process of its own.
        made: True if the run directory was not there before.
        codes: the exit codes of the jobs that have run.
        swept: the keys with several values, if another launcher than Hydra's own runs the jobs.
    """

    name: str
    module: str
    kept: bool
    program: Sequence[str] | None = None
    made: bool = True
    codes: list[int] = field(default_factory=list)
    swept: Sequence[str] = ()

    def check(self, config: DictConfig) -> None:
        check(config, import_module(self.module).SCHEMA)
        rundir.expect_run(config)

    def as_rank(self, folder: Path) -> int:
        """One of the further ranks that Lightning starts by our own command line: the first rank's config, as is."""
        self.kept = False
        return self.attempt(rundir.load(folder), folder)

    def go_on(self, folder: Path) -> int:
        """The run in a directory, where it stopped."""
        folder = folder.absolute()
        config = rundir.placed(rundir.load(folder), folder, resume=True)
        self.check(config)
        rundir.reserve(folder, numbered=False)
        self.made = False
        _log_as_before(folder)
        rundir.save(config, folder)
        return self.attempt(config, folder)

    def task(self, config: DictConfig) -> None:
        """What Hydra calls with the config of each job, once it has made its directory and log."""
        folder = Path(HydraConfig.get().runtime.output_dir)
        if self.kept:
            config = rundir.placed(config, folder, resume=False)
            if self.swept:
                config = grid.labelled(config, HydraConfig.get().overrides.task, self.swept, folder.parent)
            rundir.save(config, folder)
        self.attempt(config, folder)

    def attempt(self, config: DictConfig, folder: Path) -> int:
        """Runs one job; an error is told and becomes an exit code, an interrupt goes on up."""
        code = 0
        try:
            with environment(**{CHILD_CONFIG: str(folder)}):
                import_module(self.module).run(config, folder)
        except InputError as error:
            code = WRONG_INPUT
            _tell(f"error: {error}")
            if self.kept and self.made:
                rundir.discard(folder)
        except TrainingError as error:
            code = FAILED
            self._report(f"failed: {error}", folder)
        except (KeyboardInterrupt, Interrupted) as interrupt:
            self._report(": ".join(part for part in ("interrupted", str(interrupt)) if part), folder)
            raise KeyboardInterrupt from interrupt  # the one that Hydra lets through, whatever a launcher catches
        except Exception:
            code = FAILED
            self._report(f"failed\n{traceback.format_exc()}", folder)
        finally:
            leave_process_group()
            close_log()
        self.codes.append(code)
        return code

    def _report(self, text: str, folder: Path) -> None:
        if self.kept:
            text += f"\nrun directory: {folder}\nto go on: shiqrun {self.name} resume={for_shell(folder)}"
            with (folder / rundir.LOG).open("a", encoding="utf-8") as log:
                print(text, file=log)
        _tell(text)


def _dispatch(argv: Sequence[str], work: _Work) -> int:
    args = get_args_parser().parse_intermixed_args(list(argv))
    args.overrides = with_data_of_run(spelled(args.overrides))
    shows = args.help or args.hydra_help or args.shell_completion
    runs = not (shows or args.cfg or args.info)
    _refuse(args)
    if runs and work.name == grid.COMMAND:
        if (code := grid.resumed(args.overrides, work.program)) is not None:
            return code
        args.multirun = True
    if runs and work.kept and (folder := _resumed(args)):
        return work.go_on(folder)
    with ExitStack() as stack:
        config_dir, args.config_dir = args.config_dir, None  # before ours; Hydra would put it behind
        stack.enter_context(user_folders(work.name, config_dir))
        if runs and args.multirun:
            return _sweep(args, work, stack, typed=argv, config_dir=config_dir)
        if runs:
            config = composed(work.name, args.overrides)
            work.check(config)
            place = _place(config, "run", work, stack)
            if place is None:
                return work.go_on(Path(config.hydra.run.dir))
            args.overrides.append(f"hydra.run.dir={as_override(place)}")
        elif not shows:
            composed(work.name, args.overrides)  # for its error messages
        return _hydra(args, work)


def _sweep(args: Namespace, work: _Work, stack: ExitStack, *, typed: Sequence[str], config_dir: str | None) -> int:
    """Every job as a process of its own, or as another of Hydra's launchers has it; all are checked before any runs."""
    config = composed(work.name, args.overrides, multirun=True)
    work.swept = grid.swept_keys(config, args.overrides)
    each = [(words, composed(work.name, words)) for words in jobs(work.name, config, args.overrides)]
    for _, job in each:
        work.check(job)
    sweep = grid.planned(work.name, each, work.swept, typed)
    if work.kept and config.get("dry_run"):
        grid.show(sweep)
        return 0
    folder = _place(config, "sweep", work, stack)
    assert folder is not None
    if work.kept and grid.is_ours(config):
        return grid.run(grid.placed(sweep, folder, each, config_dir), config, work.program)
    if work.name == grid.COMMAND:
        work.name, args.overrides = sweep.command, grid.words_for_launcher(args.overrides)
    args.overrides.append(f"hydra.sweep.dir={as_override(folder)}")
    if not work.kept:
        return _hydra(args, work)
    try:
        _hydra(args, work)
    finally:  # also where the launcher itself gave up
        code = grid.collected(sweep, folder)
    return code


def _place(config: DictConfig, kind: str, work: _Work, stack: ExitStack) -> Path | None:
    """The directory for a run or a sweep, made; None if it holds this very run, unfinished."""
    if not work.kept or config.get("dry_run"):
        work.kept = False
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shiqrun-")))
    folder = Path(config.hydra[kind].dir).absolute()
    timed = _is_timed(config, kind)
    if not timed and kind == "sweep":
        rundir.free_for_sweep(folder)
    elif not timed and rundir.unfinished(folder, config):
        _tell(f"{folder} holds this run, unfinished: going on with it")
        return None
    work.made = not folder.exists()
    stack.callback(rundir.discard_empty, [parent for parent in folder.parents if not parent.exists()])
    return rundir.reserve(folder, numbered=timed)


def _hydra(args: Namespace, work: _Work) -> int:
    """Hydra's own main, past its parsing of `sys.argv`: Lightning repeats that for its ranks and needs the command."""
    version.setbase("1.3")
    try:
        _run_hydra(args, get_args_parser(), work.task, f"pkg://{CONFIG_MODULE}", work.name)
    except SystemExit as done:
        return int(done.code or 0)
    except Exception as error:  # no error of ours comes this way: `attempt` keeps them
        raise InputError(explained(error, work.name, args.overrides)) from error
    return FAILED if FAILED in work.codes else max(work.codes, default=0)


def _refuse(args: Namespace) -> None:
    for flag in ("config_path", "config_name", "experimental_rerun"):
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')}: not here; --config-dir DIR adds a folder of your own YAML")
    if sum(map(bool, (args.run, args.cfg, args.multirun, args.info, args.shell_completion))) > 1:
        raise InputError("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    if args.resolve and not (args.cfg or args.help):
        raise InputError("--resolve: only with --cfg or --help")


def _resumed(args: Namespace) -> Path | None:
    """The run directory of `resume=`, if it is there."""
    given = [override for override in args.overrides if override.lstrip("+").startswith("resume=")]
    value = unquote(given[-1].partition("=")[2]) if given else "null"
    if value in ("", "null"):
        return None
    others = [override for override in args.overrides if override not in given] + ["--multirun"] * args.multirun
    if others:
        raise InputError(
            f"resume={value}: goes on with the config of that run, so nothing else can be set: {', '.join(others)}"
        )
    return Path(value)


def _is_timed(config: DictConfig, kind: str) -> bool:
    """True if the directory's name is the time, so that two runs of one second must not share it."""
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    name = raw["hydra"][kind]["dir"]
    return "${now:" in (raw["run_dir"] if name == "${run_dir}" else name)


def _log_as_before(folder: Path) -> None:
    """Logs to the run's own log again, by the logging config that Hydra saved."""
    file = folder / rundir.CONFIG.with_name("hydra.yaml")
    if file.is_file():
        saved = OmegaConf.load(file)
        saved.hydra.runtime.output_dir = str(folder)
        configure_log(saved.hydra.job_logging, saved.hydra.verbose)


def _tell(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # the main process says it once for all ranks
    lines = text.rstrip().replace("\n", "\n  ")
    print(f"shiqrun: {lines}", file=sys.stderr)
