"""A `Forked` runs a command in a process of its own, forked from one that has imported PyTorch: that saves 8 s each."""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pandas",
        "wandb",
        "shiqrun.config.launch",
        "shiqrun.models.tiny",
        "shiqrun.models.pretrained",
        "shiqrun.batching.logged_data",
        "shiqrun.data.treasure",
        "shiqrun.commands.train",
        "shiqrun.training.run",
        "shiqrun.commands.score",
        "shiqrun.commands.values",
        "shiqrun.commands.pivotal",
    ]
)


class Forked:
    """A `Forked` has the methods of `subprocess.Popen` that tests use; a signal reaches the process likewise.

    All have one hash seed and what a library reads when it is imported; where that matters, use a process started anew.

    Args:
        words: command line behind `shiqrun`.
    """

    def __init__(self, words: tuple[str, ...]) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_run, args=(words, dict(os.environ), os.getcwd(), writer))
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal's number where one killed it, or None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for its end."""
        self._process.join(timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Its output from here to its end, as `(output, None)`; kills it when the time is over."""
        late = threading.Event()
        timer = threading.Timer(timeout or 600, lambda: (late.set(), self.kill()))
        timer.start()
        with self.stdout:
            out = self.stdout.read()
        self._process.join()
        timer.cancel()
        if late.is_set():
            raise subprocess.TimeoutExpired("shiqrun", timeout or 600, out)
        return out, None


def _run(words: tuple[str, ...], environment: dict[str, str], folder: str, writer: Connection) -> None:
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["shiqrun", *words]
    from shiqrun.cli import main

    try:
        sys.exit(main(words))
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
