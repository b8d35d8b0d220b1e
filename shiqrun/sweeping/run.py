"""A sweep's jobs run as processes, several at a time, each in a directory of its own, until every one has ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiqrun.console import count_of
from shiqrun.errors import InputError
from shiqrun.sweeping.machine import Machine
from shiqrun.sweeping.state import CONFIG, CONSOLE, STATE, TABLE, Job, Sweep
from shiqrun.sweeping.view import SweepView
from shiqrun.sweeping.warm import Warm, WarmJob
from shiqrun.util.atomic import remove_partials
from shiqrun.util.lock import Lock, LockHeld
from shiqrun.util.quoting import as_override

FAILED, INTERRUPTED = 1, 130
LOCK = ".lock"
POLL_SECONDS = 0.1
ERROR_LINES = 8
SWITCH = "SHIQRUN_PRELOAD"
"""The environment variable that starts all jobs as processes of their own where it is 0."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Process:
    """A `_Process` is a running job: its process, its slot of the machine, its start, the seconds of earlier starts."""

    job: Job
    popen: "subprocess.Popen[bytes] | WarmJob"
    slot: int
    began: float
    before: float


class Runner:
    """A runner runs the jobs of a sweep that are not finished, each as a process.

    Args:
        sweep: the jobs.
        program: the words that start the command, e.g. `python -m shiqrun train`.
        parallel: number of processes at a time.
    """

    def __init__(self, sweep: Sweep, program: Sequence[str], parallel: int) -> None:
        self.sweep, self.program, self.parallel = sweep, list(program), parallel
        self.machine = Machine(parallel)
        self.view = SweepView(sweep)
        self.running: list[_Process] = []
        self._warm: Warm | None = None
        self._asked = 0  # signals received that ask the sweep to stop
        self._told = 0  # how many of them were passed on to the processes
        self._lock = Lock(sweep.folder / LOCK)

    def run(self) -> int:
        """Run every job of the sweep that is not finished.

        Returns:
            The exit code: 0, 1 if a job did not finish, 130 if a signal stopped the sweep before every job had ended.

        Raises:
            InputError: another process is running jobs of this sweep, or its directory cannot be locked.
        """
        with self._hold_lock(), self._listening():
            waiting = self._unfinished()
            for job in waiting:
                job.status, job.exit_code, job.error = "waiting", None, []
            count = len(waiting) + self.sweep.expected - len(self.sweep.jobs)
            self.view.say(f"{count_of(count, 'job')}, {self.parallel} at a time, in {self.sweep.folder}")
            self.sweep.save()
            with self.view:
                try:
                    self._loop(waiting)
                finally:
                    if self._warm is not None:
                        self._warm.close()
        if self._asked and any(job.status != "finished" for job in self.sweep.jobs):
            return INTERRUPTED
        return FAILED if any(job.status != "finished" for job in self.sweep.jobs) else 0

    @contextmanager
    def _hold_lock(self) -> Iterator[None]:
        """Hold the sweep's lock inside the block.

        Raises:
            InputError: another process is running jobs of this sweep, or its directory cannot be locked.
        """
        try:
            self._lock.acquire()
        except LockHeld as held:
            raise InputError(
                f"{self.sweep.folder}: jobs of this sweep are running ({held}); wait for them, or end them first"
            ) from None
        except OSError as error:
            raise InputError(
                f"{self.sweep.folder}: cannot be locked ({error.strerror}); start the sweep on a file system with locks"
            ) from error
        try:
            for name in (STATE, TABLE):
                remove_partials(self.sweep.folder, name)
            yield
        finally:
            self._lock.release()

    def _unfinished(self) -> list[Job]:
        """Return the jobs that are to be run, those that failed before among them."""
        return [job for job in self.sweep.jobs if job.status != "finished"]

    def _refill(self, waiting: list[Job]) -> bool:
        """Return whether a job waits; a search adds its next ones to the list first."""
        return bool(waiting)

    def _note_end(self, job: Job) -> None:
        """Take note of a job that has ended; a search learns from it."""

    def _watch(self) -> None:
        """Look at the running jobs; a search asks whether they measure what it optimises."""

    def _loop(self, waiting: list[Job]) -> None:
        while True:
            while len(self.running) < self.parallel and not self._asked and self._refill(waiting):
                self._start(waiting.pop(0))
            if not self.running:
                return
            self._watch()
            self._pass_on()
            for process in [p for p in self.running if p.popen.poll() is not None]:
                self._end(process)
            for process in self.running:
                process.job.seconds = process.before + time.monotonic() - process.began
            self.view.update()
            time.sleep(POLL_SECONDS)

    def _start(self, job: Job) -> None:
        slot = min(set(range(self.parallel)) - {process.slot for process in self.running})
        place = self.sweep.directory_of(job)
        place.mkdir(exist_ok=True)
        began = time.monotonic()
        popen = self._fork(job, slot) or self._spawn(job, slot)
        self.running.append(_Process(job, popen, slot, began, job.seconds))
        job.status = "running"
        self.sweep.save()

    def _spawn(self, job: Job, slot: int) -> "subprocess.Popen[bytes]":
        """Start a job as a process of its own."""
        with (self.sweep.directory_of(job) / CONSOLE).open("ab") as console:
            return subprocess.Popen(
                [*self.program, *command_words(self.sweep, job)],
                cwd=self._cwd,
                env=self.machine.environment(job, slot),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C reaches the sweep alone, which tells each job once
                pass_fds=[self._lock.fileno()],  # a job that outlives us holds the lock, so that nobody starts it twice
            )

    def _fork(self, job: Job, slot: int) -> WarmJob | None:
        """Start a job as a fork of a process that has imported PyTorch; return None where it cannot be one."""
        alone = self.sweep.expected < 2 or self.program[:-1] != [sys.executable, "-m", "shiqrun"]
        if alone or not can_be_forked(job) or os.environ.get(SWITCH) == "0":
            return None
        environment = self.machine.environment(job, slot)
        if self._warm is None:
            self._warm = Warm(environment, self._cwd, [self._lock.fileno()])
        if not self._warm.works or environment != self._warm.environment:
            return None
        words = [*self.program[-1:], *command_words(self.sweep, job)]
        return self._warm.start(words, self.sweep.directory_of(job) / CONSOLE)

    @property
    def _cwd(self) -> str | None:
        """Return the working directory of the jobs, None for this process's where the sweep's is gone."""
        return self.sweep.cwd if Path(self.sweep.cwd).is_dir() else None

    def _end(self, process: _Process) -> None:
        job, code = process.job, int(process.popen.returncode or 0)
        self.running.remove(process)
        job.seconds = process.before + time.monotonic() - process.began
        job.exit_code = code if code >= 0 else 128 - code
        job.status = "finished" if code == 0 else "failed"
        if code and (code == INTERRUPTED or self._told):
            job.status = "interrupted"
        if job.status == "failed":
            job.error = error_lines(self.sweep.directory_of(job) / CONSOLE, code)
        self.sweep.save()
        self.view.note_end(job)
        self._note_end(job)

    def _pass_on(self) -> None:
        """Pass signals on to the jobs: the first asks them to save and end, the second to end now, the third kills."""
        while self._told < self._asked:
            self._told += 1
            number = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[min(self._told, 3) - 1]
            for process in self.running:
                process.popen.send_signal(number)
            if self.running and self._told == 1:
                self.view.say("stopping: the running jobs save first (Ctrl-C again: end now)")

    def _note(self, number: int, frame: Any) -> None:
        self._asked += 1

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Count signals inside the block, then put the former handlers back; only the main thread can have any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def can_be_forked(job: Job) -> bool:
    """Return whether a job is one process on the CPU; GPUs, further ranks and Ray want interpreters of their own."""
    keys = {word.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0] for word in job.words}
    return not job.gpus and keys.isdisjoint({"hardware", "rollout"})


def command_words(sweep: Sweep, job: Job) -> list[str]:
    """Return the words of a sweep job's command line: its overrides, or `resume=` where its run was begun before."""
    place = sweep.directory_of(job).absolute()
    if sweep.command == "train" and (place / CONFIG).is_file():
        return [f"resume={as_override(place)}"]
    return [*job.words, f"run_dir={as_override(place)}"]


def error_lines(console: Path, code: int) -> list[str]:
    """Return the last lines that a failed job printed, from the line on that says why."""
    lines = console.read_text(encoding="utf-8", errors="replace").splitlines() if console.is_file() else []
    told = [number for number, line in enumerate(lines) if line.startswith("shiqrun: ")]
    lines = [line for line in lines[told[-1] if told else 0 :] if line.strip()]
    lines = [line for line in lines if not line.strip().startswith(("run directory: ", "to go on: "))]
    head = [] if len(lines) <= ERROR_LINES or not told else [lines[0]]
    killed = [] if code >= 0 else [f"killed by {signal.Signals(-code).name}" + " (memory?)" * (code == -signal.SIGKILL)]
    return [*head, *lines[len(head) - ERROR_LINES :], *killed]
