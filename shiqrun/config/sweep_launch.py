"""`start_sweep` starts a grid, a search or a comparison: its jobs are checked first, then each runs in a process."""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from omegaconf import DictConfig

from shiqrun.config import run_directory as rundir
from shiqrun.config import sweep_grid as grid
from shiqrun.config import sweep_search as search
from shiqrun.config.command_line import CommandLine, print_error
from shiqrun.config.compare_plan import is_same, plan_comparison, print_comparison
from shiqrun.config.compose import compose, job_overrides
from shiqrun.config.method_configs import without_hydra
from shiqrun.config.places import place
from shiqrun.config.requeued import former_directory, mark
from shiqrun.config.run_lock import lock_run
from shiqrun.errors import InputError
from shiqrun.sweeping.study import expect_optuna
from shiqrun.util.quoting import as_override


def start_sweep(
    args: Namespace,
    command: CommandLine,
    stack: ExitStack,
    *,
    typed: Sequence[str],
    config_dir: str | None,
    call_hydra: Callable[[Namespace, CommandLine], int],
) -> int:
    """Check all jobs, then run each in a process of its own, or as the chosen launcher of Hydra runs them."""
    if (here := place()).world > 1:
        raise InputError(f"{here.started_by} started {here.world} processes, but a sweep is started by one")
    config = compose(command.name, args.overrides, multirun=True)
    if command.name == grid.COMPARE:
        return _compare(args, command, stack, config, typed=typed, config_dir=config_dir)
    if search.is_search(config):
        return _search(args, command, stack, config, typed=typed, config_dir=config_dir)
    command.swept = grid.swept_keys(config, args.overrides)
    each_words = job_overrides(command.name, config, args.overrides)
    each = [(words, compose(command.name, words)) for words in each_words]
    for _, job in each:
        command.check(job)
    sweep = grid.plan_sweep(command.name, each, command.swept, typed)
    if command.keeps_files and config.get("dry_run"):
        grid.print_jobs(sweep)
        return 0
    folder = output_directory(config, "sweep", command, stack)
    assert folder is not None
    if command.keeps_files and grid.uses_own_launcher(config):
        return grid.run(grid.place(sweep, folder, each, config_dir), config, command.program)
    if command.name == grid.COMMAND:
        command.name, args.overrides = sweep.command, grid.words_for_launcher(args.overrides)
    args.overrides.append(f"hydra.sweep.dir={as_override(folder)}")
    if not command.keeps_files:
        return call_hydra(args, command)
    try:
        call_hydra(args, command)
    finally:  # also where the launcher itself gave up
        code = grid.collect_results(sweep, folder)
    return code


def _compare(
    args: Namespace,
    command: CommandLine,
    stack: ExitStack,
    config: DictConfig,
    *,
    typed: Sequence[str],
    config_dir: str | None,
) -> int:
    """Run the methods that the data can feed, or go on with the same comparison where its directory holds it."""
    folder = Path(config.hydra.sweep.dir).absolute()
    if not config.dry_run and is_same(folder, [command.name, *typed]):
        print_error(f"{folder} holds this comparison: going on with it")
        again = [f"sweep.resume={as_override(folder)}", f"sweep.parallel={config.sweep.parallel}"]
        return grid.resume(again, command.program) or 0
    module = import_module(command.module)
    sweep, each = plan_comparison(config, args.overrides, typed, command, module.candidates)
    if config.dry_run:
        print_comparison(sweep, module.seconds_of_run(without_hydra(each[0][1])), config.sweep.parallel)
        return 0
    made = output_directory(config, "sweep", command, stack)
    assert made is not None
    return grid.run(grid.place(sweep, made, each, config_dir), config, command.program)


def _search(
    args: Namespace,
    command: CommandLine,
    stack: ExitStack,
    config: DictConfig,
    *,
    typed: Sequence[str],
    config_dir: str | None,
) -> int:
    """Check the ends of the searched space, then have Optuna choose the jobs, or write what W&B's agents read."""
    sweep, corners = search.plan_search(config, args.overrides, typed)
    for corner in corners:
        command.check(corner)
    if config.sweep.search == "wandb":
        folder = None if config.dry_run else output_directory(config, "sweep", command, stack)
        return search.write_for_wandb(sweep, folder, corners[0], config_dir)
    expect_optuna()
    if config.dry_run:
        search.print_search(sweep)
        return 0
    folder = output_directory(config, "sweep", command, stack)
    assert folder is not None
    return grid.run(search.place(sweep, folder, corners[0], config_dir), config, command.program)


def output_directory(config: DictConfig, kind: str, command: CommandLine, stack: ExitStack) -> Path | None:
    """Make the directory for a run or a sweep; return None if it holds this very run, unfinished.

    Args:
        config: the composed config.
        kind: "run" or "sweep".
        command: learns whether its files are kept and whether the directory was there before.
        stack: what is to be removed when the command ends.
    """
    if not command.keeps_files or config.get("dry_run"):
        command.keeps_files = False
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shiqrun-")))
    if rundir.is_named_by_time(config, kind) and kind == "run" and (former := former_directory(config)):
        print_error(f"SLURM runs this job again: going on with {former}")
        config.hydra.run.dir = str(former)
        return None
    folder = Path(config.hydra[kind].dir).absolute()
    timed, command.made_directory = rundir.is_named_by_time(config, kind), not folder.exists()
    stack.callback(rundir.discard_empty, [parent for parent in folder.parents if not parent.exists()])
    if not timed and kind == "run":
        rundir.make_directory(folder, numbered=False)
        stack.enter_context(lock_run(folder))  # before its files are read: another process may be about to write them
    if not timed and kind == "sweep":
        rundir.expect_neither_run_nor_sweep(folder)
    elif not timed and rundir.holds_unfinished(folder, config):
        print_error(f"{folder} holds this run, unfinished: going on with it")
        return None
    folder = rundir.make_directory(folder, numbered=timed)
    if kind == "run":
        mark(folder)
    return folder
