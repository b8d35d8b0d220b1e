"""`rollout=ray` starts a Ray cluster on this machine, or joins an existing one at `rollout.address`."""

import logging
import math
import os
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.rollout.ray.watchdog import Watchdog
from shiqrun.rollout.settings import RayRollouts

ANSWER_SECONDS = 10.0
"""How long the cluster's address may take to accept a connection."""
QUIET: dict[str, Any] = {"configure_logging": False, "logging_level": logging.ERROR, "log_to_driver": False}
FAILURES = (ConnectionError, RuntimeError, ValueError)
"""What `ray.init` raises where it finds or starts no cluster."""


@dataclass(frozen=True)
class Cluster:
    """A `Cluster` is a Ray cluster that this process is connected to.

    Attributes:
        ray: the module `ray`.
        connected: whether `connect` connected the process; else it was connected before, and stays so.
        watchdog: ends the cluster if the process started it here; None for a cluster of others.
    """

    ray: Any
    connected: bool
    watchdog: Watchdog | None = None

    @property
    def logs(self) -> str:
        """Return where Ray's logs are, for a message."""
        if self.watchdog is None:
            return "in session_latest/logs of the cluster's temporary directory"
        return f"in {self.watchdog.directory}/session_latest/logs until the run ends"

    def keep_logs(self, directory: Path) -> str:
        """Copy Ray's logs to `ray_logs` in a directory, if they would go with the cluster; return where they are."""
        if self.watchdog is None:
            return self.logs
        kept = directory / "ray_logs"
        with suppress(OSError):  # a log that vanishes meanwhile must not hide the error for which they are kept
            shutil.copytree(self.watchdog.directory / "session_latest" / "logs", kept, dirs_exist_ok=True)
        return f"in {kept}"

    def close(self) -> None:
        """Disconnect if `connect` connected, and end the cluster if it was started here."""
        if self.connected:
            self.ray.shutdown()  # ends the actors, without a message about each
        if self.watchdog is not None:
            self.watchdog.close()


def connect(settings: RayRollouts) -> Cluster:
    """Return the Ray cluster at `rollout.address`, or a new one on this machine.

    Raises:
        InputError: Ray is not installed, or no cluster is at the address.
    """
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if settings.address is None:
        # Our cluster listens to this machine alone; with authentication Ray would leave a token in the home directory.
        quiet["RAY_AUTH_MODE"] = "disabled"
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise InputError("rollout=ray: Ray is missing; pip install 'shiqrun[ray]', or set rollout=local") from None
    if ray.is_initialized():
        return Cluster(ray, connected=False)
    if settings.address:
        _expect_listener(settings.address)
    return _joined(ray, settings.address) if settings.address else _started(ray, settings)


def _joined(ray: Any, address: str) -> Cluster:
    try:
        ray.init(address=address, **QUIET)
    except FAILURES as error:
        raise InputError(f"rollout.address={address}: no Ray cluster ({error})") from error
    return Cluster(ray, connected=True)


def _started(ray: Any, settings: RayRollouts) -> Cluster:
    cores = max(os.cpu_count() or 1, math.ceil(settings.actors * settings.actor_cpus))
    watchdog = Watchdog() if Path("/proc/self/environ").exists() else None  # elsewhere it could find no process
    options = {"address": "local", "num_cpus": cores, "include_dashboard": False, **QUIET}
    try:
        if watchdog is None:
            ray.init(**options)
        else:
            with watchdog.marks():
                ray.init(_temp_dir=str(watchdog.directory), **options)
    except FAILURES as error:
        if watchdog is not None:
            watchdog.close()
        raise InputError(f"rollout=ray: no Ray cluster ({error})") from error
    return Cluster(ray, connected=True, watchdog=watchdog)


def _expect_listener(address: str) -> None:
    """Check that the address accepts connections, because Ray itself would try for many minutes.

    Raises:
        InputError: nobody listens at HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise InputError(f"rollout.address={address}: no Ray cluster ({error.strerror or error})") from error
