"""The pool runs programs side by side, one worker in each thread; a lost worker loses only its own program."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shiqrun.errors import TrainingError
from shiqrun.sandbox.backends import Backend
from shiqrun.sandbox.worker import Limits, Outcome, Program, SandboxWorker, WorkerLost

Item = TypeVar("Item")
Result = TypeVar("Result")
ATTEMPTS = 3
"""How often a program is tried that the machine failed to start; a program that ends its worker is tried twice."""
PAUSE = 0.3
"""Seconds before another attempt, times the attempts so far: the machine may be short of processes or memory."""

Run = Callable[[Program, Limits], Outcome]


class Pool:
    """A pool holds `workers` threads, each with a sandboxed zygote; as a context manager it closes them at the end.

    Args:
        backend: how programs are confined.
        workers: number of programs at once.
    """

    def __init__(self, backend: Backend, workers: int) -> None:
        self._backend = backend
        self._workers: list[SandboxWorker] = []
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, "sandbox")

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lost(self) -> int:
        """Return the number of zygotes that had to be replaced so far."""
        return sum(worker.lost for worker in self._workers)

    def map(self, task: Callable[[Run, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `task(run, item)` for each item, in order; a task calls `run(program, limits)` for each program."""
        futures = [self._threads.submit(task, self._run, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _run(self, program: Program, limits: Limits) -> Outcome:
        """Run a program in the sandbox and return its outcome.

        Raises:
            TrainingError: the sandbox cannot start programs any more.
        """
        outcome = Outcome("sandbox_error")
        for attempt in range(ATTEMPTS):
            if self._closed:
                raise TrainingError("the sandbox was closed")
            time.sleep(PAUSE * attempt)
            try:
                outcome = self._worker().run(program, limits)
            except WorkerLost as error:
                outcome = Outcome("sandbox_error", errors=str(error))
                continue
            if outcome.verdict == "sandbox_lost" and attempt:
                return outcome
            if outcome.verdict not in ("sandbox_lost", "sandbox_error"):
                return outcome
        raise TrainingError(f"the sandbox {self._backend.name} starts no program any more: {outcome.errors.strip()}")

    def _worker(self) -> SandboxWorker:
        """Return the sandbox worker of this thread."""
        if not hasattr(self._mine, "worker"):
            self._mine.worker = SandboxWorker(self._backend)
            with self._lock:
                self._workers.append(self._mine.worker)
        worker: SandboxWorker = self._mine.worker
        return worker

    def close(self) -> None:
        """End the threads, after the programs that run now, and the workers."""
        self._closed = True
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()
