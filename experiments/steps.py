"""`Steps` runs a study's `shiqrun` commands, each in its own process, and skips those that are finished."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of every step, unless the variable is set already."""
SOME_JOBS_FAILED = 1
"""Exit code of `shiqrun sweep` when a job failed; the report is written from the others."""


class Steps:
    """`Steps` runs a study's commands one after the other; a failing one ends the study with its exit code.

    Attributes:
        dry_run: print the commands that would run now instead of running them.
    """

    def __init__(self, *, dry_run: bool = False, threads: int | None = None):
        """Prepare the environment variables of the commands.

        Args:
            dry_run: print the commands instead of running them.
            threads: OMP_NUM_THREADS of every command unless that is set; None leaves PyTorch's choice. Models of
                studies are so small that one thread is the fastest, and two runs go side by side.
        """
        self.dry_run = dry_run
        defaults = OFFLINE if threads is None else OFFLINE | {"OMP_NUM_THREADS": str(threads)}
        self._environment = defaults | os.environ

    def shiqrun(self, *words: str, also: Sequence[int] = ()) -> None:
        """Run `shiqrun WORDS...`.

        Args:
            words: the command and its settings.
            also: exit codes beside 0 after which the study goes on.

        Raises:
            SystemExit: the command failed; the code is the command's.
        """
        self._run("shiqrun", ["-m", "shiqrun", *words], words, also)

    def python(self, module: str, *words: str) -> None:
        """Run `python -m MODULE WORDS...`, for tables and pictures.

        Raises:
            SystemExit: the module failed; the code is the module's.
        """
        self._run(f"python -m {module}", ["-m", module, *words], words, ())

    def unless_done(self, run_dir: Path, *words: str) -> None:
        """Run `shiqrun WORDS... run_dir=RUN_DIR` unless an earlier start has left its summary.json there."""
        if not (run_dir / "summary.json").exists():
            self.shiqrun(*words, f"run_dir={run_dir}")

    def sweep(self, run_dir: Path, *words: str, jobs: int) -> None:
        """Run `shiqrun sweep WORDS...`, or the jobs that are missing of a sweep that an earlier start began.

        A job that fails does not end the study: the report is written from the other jobs.

        Args:
            run_dir: directory of the sweep.
            words: settings, and lists of values that make the grid.
            jobs: number of runs side by side.
        """
        if (run_dir / "sweep.json").exists():
            self.shiqrun("sweep", f"sweep.resume={run_dir}", f"sweep.parallel={jobs}", also=[SOME_JOBS_FAILED])
        else:
            parallel = f"sweep.parallel={jobs}"
            self.shiqrun("sweep", *words, parallel, f"run_dir={run_dir}", also=[SOME_JOBS_FAILED])

    def _run(self, program: str, command: Sequence[str], words: Sequence[str], also: Sequence[int]) -> None:
        """Print a command of the study, and run it unless this is a dry run."""
        print(f"{program} {shlex.join(words)}", flush=True)
        if self.dry_run:
            return
        code = subprocess.run([sys.executable, *command], env=self._environment, check=False).returncode
        if code and code not in also:
            raise SystemExit(code)


def study_parser(description: str | None, *, out: str, betas: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of the options that studies share: --out, --betas, --seeds, --jobs, --logger, --dry-run.

    Args:
        description: the study's docstring.
        out: default directory of the study's runs.
        betas: default values of algo.beta, separated by commas; None: the study does not vary beta.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out), help=f"directory of the study (default: {out})")
    if betas:
        parser.add_argument("--betas", default=betas, help=f"values of algo.beta (default: {betas})")
    parser.add_argument("--seeds", default="1,2,3", help="seeds of every run (default: 1,2,3)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    parser.add_argument("--logger", default="none", help="experiment tracker, as in logger=wandb (default: none)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that would run now, and stop")
    return parser
