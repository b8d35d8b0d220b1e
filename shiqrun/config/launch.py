"""`launch` turns the words behind `shiqrun COMMAND` into finished jobs: Hydra around a command's `run`.

The config is composed and checked before Hydra makes the run directory and sets up logging, so that a mistake leaves no
run directory behind. This module also resumes runs, starts
sweeps, serves the further ranks of a run, and turns errors into exit codes.
"""

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from shiqrun.config import sweep_grid as grid
from shiqrun.config.command_line import CHILD_CONFIG, INTERRUPTED, WRONG_INPUT, CommandLine, print_error
from shiqrun.config.compose import as_hydra_overrides, compose, initialised_hydra
from shiqrun.config.crew import RankFailed
from shiqrun.config.explain import explain
from shiqrun.config.flags import refuse_flags, words_of_resume
from shiqrun.config.of_run import with_data_of_run
from shiqrun.config.places import Place, Unplaced, place
from shiqrun.config.process import environment
from shiqrun.config.ranks import end_with_parent, met
from shiqrun.config.sources import CONFIG_MODULE, user_folders
from shiqrun.config.sweep_launch import output_directory, start_sweep
from shiqrun.errors import InputError
from shiqrun.util import slurm
from shiqrun.util.closed_pipe import is_output_closed
from shiqrun.util.full_disk import full_disk
from shiqrun.util.quoting import as_override


def launch(
    name: str, argv: Sequence[str], *, module: str, writes: bool = True, program: Sequence[str] | None = None
) -> int:
    """Run `module.run` for every job that the words of a command line ask for.

    Args:
        name: the command, which is also the name of its config.
        argv: the words behind the command: overrides and Hydra's flags, in any order.
        module: has `run(config: DictConfig, run_dir: Path) -> None` and `SCHEMA`; it is imported only for a run.
        writes: False if the command leaves no files: `run` then gets a directory that vanishes.
        program: the words that start a job of a sweep in a process of its own; by default `python -m shiqrun`.

    Returns:
        The exit code: 0, 1 for a failure, 2 for input that cannot work, 130 for an interrupt.
    """
    command = CommandLine(name, module, keeps_files=writes, program=program)
    slurm.note_warning()
    try:
        if os.environ.get("LOCAL_RANK", "0") != "0" and CHILD_CONFIG in os.environ:
            end_with_parent()
            return command.run_as_further_rank(Path(os.environ[CHILD_CONFIG]))
        with environment(HYDRA_FULL_ERROR="1"):  # Hydra raises its errors instead of printing them and exiting
            here = place()
            return _dispatch(argv, command) if here.world == 1 else _dispatch_among_ranks(argv, command, here)
    except RankFailed as failed:
        return failed.failure.code
    except InputError as error:
        print_error(f"error: {error}", by_all=isinstance(error, Unplaced))
        return WRONG_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def launch_in_process(name: str, words: Sequence[str], *, module: str) -> Path:
    """Run one job for a Python program that waits for it, and return its run directory.

    Args:
        name: the command.
        words: the words behind it, as `launch` takes them.
        module: as in `launch`.

    Raises:
        InputError: input that cannot work.
        TrainingError: the job failed.
        KeyboardInterrupt: it was interrupted, after it has saved what it can.
    """
    command = CommandLine(name, module, keeps_files=True, raises=True)
    with environment(HYDRA_FULL_ERROR="1"):
        _dispatch(words, command)
    if command.error is not None:
        raise command.error
    if command.directory is None:
        raise InputError(f"{name}: these words start no run; give them to `shiqrun {name}` in a shell")
    return command.directory


def _dispatch_among_ranks(argv: Sequence[str], command: CommandLine, here: Place) -> int:
    """Do what the words ask for as one of the processes that torchrun or srun has started; rank 0 alone reads them.

    Raises:
        InputError: the command runs in one process.
    """
    if not command.has_ranks or command.name == grid.COMMAND:
        raise InputError(f"{here.started_by} started {here.world} processes, but shiqrun {command.name} runs in one")
    with met(here, lambda failure: print_error(failure.text)) as crew:
        if here.rank:
            told = crew.told()
            crew.code = command.run_as_further_rank(told) if isinstance(told, Path) else told
        else:
            crew.code = _dispatch(argv, command)
    return crew.code


def _dispatch(argv: Sequence[str], command: CommandLine) -> int:
    """Show a config or help, resume, sweep or run one job, whichever the words ask for."""
    args = get_args_parser().parse_intermixed_args(list(argv))
    args.overrides = with_data_of_run(as_hydra_overrides(args.overrides))
    shows = args.help or args.hydra_help or args.shell_completion
    runs = not (shows or args.cfg or args.info)
    refuse_flags(args)
    if runs and command.name in grid.OWN_COMMANDS:
        if (code := grid.resume(args.overrides, command.program)) is not None:
            return code
        args.multirun = True
    if runs and command.keeps_files and (words := words_of_resume(args)):
        return command.resume(*words)
    with ExitStack() as stack:
        config_dir, args.config_dir = args.config_dir, None  # we search it before the project, Hydra after it
        stack.enter_context(user_folders(command.name, config_dir))
        if runs and args.multirun:
            return start_sweep(args, command, stack, typed=argv, config_dir=config_dir, call_hydra=_call_hydra)
        if runs:
            return _run_one(args, command, stack)
        if not shows:
            compose(command.name, args.overrides)  # for its error messages
        return _call_hydra(args, command)


def _run_one(args: Namespace, command: CommandLine, stack: ExitStack) -> int:
    """Check the config, make the run directory, and run the job; or continue the same run if it is there unfinished."""
    config = compose(command.name, args.overrides)
    command.check(config)
    folder = output_directory(config, "run", command, stack)
    if folder is None:
        return command.resume(Path(config.hydra.run.dir))
    if config.hydra.mode == RunMode.MULTIRUN:  # a user's hydra.mode=MULTIRUN
        args.overrides.append(f"hydra.run.dir={as_override(folder)}")
        return _call_hydra(args, command)
    return _run_composed(config, folder, args, command)


def _call_hydra(args: Namespace, command: CommandLine) -> int:
    """Call what Hydra calls after parsing `sys.argv`, which stays as it is."""
    version.setbase("1.3")
    try:
        with _explained(command.name, args.overrides):
            _run_hydra(args, get_args_parser(), command.run_composed, f"pkg://{CONFIG_MODULE}", command.name)
    except SystemExit as done:
        return int(done.code or 0)
    return command.exit_code


def _run_composed(config: DictConfig, folder: Path, args: Namespace, command: CommandLine) -> int:
    """Run a job whose config is composed, in its directory, as Hydra's `run` does after composing it twice more."""
    settings = config.hydra
    settings.run.dir = str(folder)
    settings.overrides.hydra.append(f"hydra.run.dir={as_override(folder)}")
    if settings.mode is None:
        settings.mode = RunMode.RUN
        settings.overrides.hydra.append(f"hydra.mode={RunMode.RUN.name}")
    with initialised_hydra(command.name) as hydra, _explained(command.name, args.overrides):
        configure_log(settings.hydra_logging, settings.verbose)
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=command.name)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
        done = run_job(command.run_composed, config, "hydra.run.dir", None, context)
        callbacks.on_run_end(config=config, config_name=command.name, job_return=done)
        _ = done.return_value  # raises what the job raised
    return command.exit_code


@contextmanager
def _explained(name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra raises into InputError; errors of jobs do not come this way: `run_job` catches them."""
    try:
        yield
    except Exception as error:
        if full_disk(error) or is_output_closed(error):
            raise
        raise InputError(explain(error, name, overrides)) from error
