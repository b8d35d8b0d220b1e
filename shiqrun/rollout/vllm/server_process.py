"""A server process is a vLLM server that a run has started by `rollout.command` and that ends with the run."""

import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from shiqrun.errors import InputError
from shiqrun.rollout.vllm import guard

LAST_LINES = 3
"""Lines of a server's log that a message about its end repeats."""
SWITCHES = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
"""Environment variables without which a vLLM server takes no new weights."""


class ServerProcess:
    """A server process runs a command in the background until it is closed, or until this process is gone.

    Args:
        command: as in a shell, without its operators; `{model}` and `{port}` are filled in.
        model: directory or Hub id that the server is to load.
        port: that it is to listen at.
        log: file of its output.

    Raises:
        InputError: the command cannot be read or started.
    """

    def __init__(self, command: str, *, model: str, port: int, log: Path) -> None:
        self.log = log
        try:
            words = [word.replace("{model}", model).replace("{port}", str(port)) for word in shlex.split(command)]
        except ValueError as error:
            raise InputError(f"rollout.command={command}: {error}") from error
        if not words:
            raise InputError("rollout.command is empty; give the server's command, or null where it runs already")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**SWITCHES, **os.environ},
                start_new_session=True,  # a signal to the trainer's group or terminal does not reach it
            )

    def end(self) -> str | None:
        """Return how the server has ended, with the last lines of its log; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        told = " / ".join(line.strip() for line in lines[-LAST_LINES:])
        return f"exit code {code}: {told or 'it printed nothing'} (all in {self.log})"

    def close(self) -> None:
        """End the server and all processes that it has started; return when that is done."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # the guard goes on without its owner
            self._process.wait(2 * guard.GRACE_SECONDS)
