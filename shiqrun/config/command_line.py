"""`CommandLine` runs the jobs of a command line: it locks their directories and turns their errors into exit codes."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from shiqrun.config import run_directory as rundir
from shiqrun.config import sweep_grid as grid
from shiqrun.config.crew import FAILED, INTERRUPTED, WRONG_INPUT, Failure, RankFailed, lost_connection
from shiqrun.config.flags import with_places
from shiqrun.config.places import place
from shiqrun.config.process import append_to_log, close_log, environment, leave_process_group
from shiqrun.config.ranks import all_ranks, is_met, met
from shiqrun.config.run_lock import lock_run
from shiqrun.config.validate import check
from shiqrun.console import is_main_process, waiting
from shiqrun.errors import InputError, Interrupted, TrainingError
from shiqrun.util import slurm
from shiqrun.util.closed_pipe import CLOSED_PIPE, is_output_closed
from shiqrun.util.few_collections import few_collections
from shiqrun.util.full_disk import append_if_possible, full_disk
from shiqrun.util.quick_imports import without_pictures
from shiqrun.util.quoting import quote_for_shell

CHILD_CONFIG = "SHIQRUN_CHILD_CONFIG"
"""Environment variable with the run directory, for the further ranks of a run."""


@dataclass
class CommandLine:
    """A `CommandLine` runs the jobs that its words ask for and remembers how they ended.

    Attributes:
        name: the command.
        module: the module with its `run` and `SCHEMA`.
        keeps_files: False if the run directory vanishes at the end.
        program: the words that start a job of a sweep in a process of its own.
        made_directory: True if the run directory was not there before, so that wrong input may remove it.
        exit_codes: of the jobs that have run.
        swept: the keys with several values, if a launcher other than Hydra's own runs the jobs.
        raises: a Python program waits for the job: its error is kept for it instead of printed.
        error: what the last job raised.
        directory: of the last job.
    """

    name: str
    module: str
    keeps_files: bool
    program: Sequence[str] | None = None
    made_directory: bool = True
    exit_codes: list[int] = field(default_factory=list)
    swept: Sequence[str] = ()
    raises: bool = False
    error: Exception | None = None
    directory: Path | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of all jobs together: a failure before wrong input."""
        return FAILED if FAILED in self.exit_codes else max(self.exit_codes, default=0)

    def check(self, config: DictConfig) -> None:
        """Raise InputError if the config cannot be run."""
        with waiting("starting: torch, transformers and Lightning are loaded"), few_collections(), without_pictures():
            check(config, import_module(self.module).SCHEMA)
        rundir.expect_run(config)
        devices = config.get("hardware", {}).get("devices", 1)
        if self.raises and devices not in (1, "1", "auto"):
            raise InputError(
                f"hardware.devices={devices}: several processes start only from a shell: shiqrun {self.name}"
            )

    def run_as_further_rank(self, folder: Path) -> int:
        """Run the config of the first rank, which is in its run directory."""
        self.keeps_files = False
        return self.run_job(rundir.load(folder), folder)

    def resume(self, folder: Path, places: Sequence[str] = ()) -> int:
        """Continue the run in a directory with its saved config, on other hardware where `places` say so."""
        folder = folder.absolute()
        with lock_run(folder):
            config = rundir.with_run_dir(with_places(rundir.load(folder), places), folder, resume=True)
            self.check(config)
            rundir.make_directory(folder, numbered=False)
            rundir.remove_leftovers(folder)
            self.made_directory = False
            append_to_log(folder, self.name)
            rundir.save(config, folder)
            return self.run_job(config, folder)

    def run_composed(self, config: DictConfig) -> None:
        """Run one job; Hydra calls this with the job's config, once it has made the run directory and the log.

        Where a launcher of Hydra calls it in each task of a SLURM job, these are the ranks of the job.
        """
        here = place()
        if here.world == 1 or is_met() or not self.has_ranks:
            self._run_composed(config)
            return
        with met(here, lambda failure: print_error(failure.text)) as crew:
            if here.rank:
                close_log()
                told = crew.told()
                crew.code = self.run_as_further_rank(told) if isinstance(told, Path) else told
            else:
                self._run_composed(config)
                crew.code = self.exit_code

    def _run_composed(self, config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        with lock_run(folder) if self.keeps_files else nullcontext():
            if self.keeps_files:
                rundir.remove_leftovers(folder)
                begun = slurm.runs_again() and os.path.lexists(folder / "checkpoints" / "last.ckpt")
                config = rundir.with_run_dir(config, folder, resume=begun)
                if self.swept:
                    config = grid.with_labels(config, HydraConfig.get().overrides.task, self.swept, folder.parent)
                rundir.save(config, folder)
            self.run_job(config, folder)

    def run_job(self, config: DictConfig, folder: Path) -> int:
        """Run one job; return its exit code and print its error. An interrupt is raised again."""
        code, self.directory = 0, folder
        try:
            with environment(**{CHILD_CONFIG: str(folder)}), self._ranks(config, folder):
                import_module(self.module).run(config, folder)
        except (KeyboardInterrupt, Interrupted) as interrupt:
            self.say(self._failure_of(folder, interrupt), folder)
            self._run_again(getattr(interrupt, "number", 0))
            raise KeyboardInterrupt from interrupt  # the only exception that no launcher of Hydra's catches
        except RankFailed as failed:
            code, self.error = failed.failure.code, failed
            if failed.__cause__ is not None and is_output_closed(failed.__cause__):
                raise failed.__cause__ from None
            if code == INTERRUPTED:
                raise KeyboardInterrupt from failed
        except Exception as error:
            if is_output_closed(error):
                raise
            failure, self.error = self._failure_of(folder, error), error
            code = failure.code
            if code != WRONG_INPUT or not self.raises:
                self.say(failure, folder)
        finally:
            leave_process_group()
            close_log()
        if code == WRONG_INPUT and self.keeps_files and self.made_directory:
            rundir.discard_unused(folder)
        self.exit_codes.append(code)
        return code

    def _run_again(self, number: int) -> None:
        """Have a job that was stopped by a cluster's signal run again, now that all is saved."""
        if number == slurm.WARNING and slurm.job() is not None and is_main_process():
            print_error(slurm.requeue())
        elif number == signal.SIGUSR2:
            signal.raise_signal(number)  # submitit requeues the job

    def _ranks(self, config: DictConfig, folder: Path) -> AbstractContextManager[None]:
        """Return the context in which all ranks of a job are there; most commands, and a dry run, have one process."""
        if not self.has_ranks or config.get("dry_run"):
            return nullcontext()
        say, failure_of = partial(self.say, folder=folder), partial(self._failure_of, folder)
        return all_ranks(config, folder, self.name, say=say, failure_of=failure_of)

    @property
    def has_ranks(self) -> bool:
        """Return whether the command may run as several processes that work together."""
        return getattr(import_module(self.module), "RANKS", False)

    def _failure_of(self, folder: Path, error: BaseException) -> Failure:
        """Return the exit code after an error, and what is printed."""
        if isinstance(error, InputError):
            return Failure(WRONG_INPUT, f"error: {error}")
        if isinstance(error, KeyboardInterrupt):
            return Failure(INTERRUPTED, ": ".join(part for part in ("interrupted", str(error)) if part))
        if is_output_closed(error):
            return Failure(CLOSED_PIPE, "")
        line = str(error) if isinstance(error, TrainingError) else full_disk(error, folder)
        text = line or lost_connection(error)
        return Failure(FAILED, f"failed: {text}" if text else f"failed\n{''.join(traceback.format_exception(error))}")

    def say(self, failure: Failure, folder: Path) -> None:
        """Print how a job failed; where it can go on, write that into the run's log with how to continue."""
        text = failure.text
        if self.keeps_files and failure.code in (FAILED, INTERRUPTED):
            text += f"\nrun directory: {folder}\nto go on: shiqrun {self.name} resume={quote_for_shell(folder)}"
            append_if_possible(folder / rundir.LOG, f"{text}\n")
        print_error(text)


def print_error(text: str, *, by_all: bool = False) -> None:
    """Print an error of the command on standard error, once for all ranks of a run, or on each where `by_all`."""
    if not (is_main_process() or by_all) or not text:
        return  # the main process prints it
    lines = text.rstrip().replace("\n", "\n  ")
    print(f"shiqrun: {lines}", file=sys.stderr)
