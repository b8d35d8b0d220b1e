"""A run finds the vLLM server of its settings: it waits for the one at a URL, or starts one by a command."""

import time
from pathlib import Path

from shiqrun.errors import InputError
from shiqrun.rollout.settings import VllmRollouts
from shiqrun.rollout.vllm.server_process import ServerProcess
from shiqrun.util.json_http import JsonServer, Unreachable

LOOK_SECONDS = 1.0
"""Seconds between two looks whether a server that was started has ended."""


def server_of(settings: VllmRollouts) -> JsonServer:
    """Return the server at `rollout.base_url`, which need not be there.

    Raises:
        InputError: the URL cannot be read.
    """
    try:
        return JsonServer(settings.base_url, key_env=settings.key_env, seconds=settings.timeout)
    except ValueError as error:
        raise InputError(f"rollout.base_url: {error}") from error


def start_server(server: JsonServer, settings: VllmRollouts, model: str, log: Path) -> ServerProcess:
    """Start the server of `rollout.command`.

    Args:
        server: where it is to answer.
        settings: of sampling.
        model: directory or Hub id that it is to load.
        log: file of its output.

    Raises:
        InputError: another server answers there already, or the command cannot be started.
    """
    assert settings.command is not None
    try:
        server.wait("/health", 0)
    except Unreachable:
        return ServerProcess(settings.command, model=model, port=server.port, log=log)
    raise InputError(
        f"rollout.base_url={server.url}: a server answers there already; leave out rollout.command to use it, or "
        "choose another port"
    )


def wait_for_server(server: JsonServer, settings: VllmRollouts, process: ServerProcess | None = None) -> None:
    """Wait until a server answers.

    Raises:
        InputError: it does not within `rollout.start_timeout`, or its process has ended.
    """
    end = time.monotonic() + settings.start_timeout
    while True:
        try:
            server.wait("/health", max(0.0, min(LOOK_SECONDS, end - time.monotonic())))
        except Unreachable as error:
            if process is not None and (ended := process.end()):
                raise InputError(f"rollout.command: the server has ended with {ended}") from error
            if time.monotonic() >= end:
                where = f"; its output is in {process.log}" if process else "; start one, or let rollout.command do so"
                raise InputError(
                    f"rollout.base_url={server.url}: no server answers ({error}) within rollout.start_timeout="
                    f"{settings.start_timeout:g} seconds{where}"
                ) from error
        else:
            return
