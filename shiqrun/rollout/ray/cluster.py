"""`rollout=ray` starts a Ray cluster on this machine, or joins an existing one at `rollout.address`."""

import logging
import math
import os
import socket
from typing import Any

from shiqrun.errors import InputError
from shiqrun.rollout.settings import RayRollouts

ANSWER_SECONDS = 10.0
"""How long the cluster's address may take to accept a connection."""


def connect(settings: RayRollouts) -> tuple[Any, bool]:
    """Connect to a Ray cluster, and return the module `ray` and whether this call connected (else the process was).

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
        return ray, False
    if settings.address:
        _expect_listener(settings.address)
    cores = max(os.cpu_count() or 1, math.ceil(settings.actors * settings.actor_cpus))
    try:
        ray.init(
            address=settings.address or "local",
            num_cpus=None if settings.address else cores,
            include_dashboard=False if settings.address is None else None,
            configure_logging=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"rollout.address={settings.address}" if settings.address else "rollout=ray"
        raise InputError(f"{where}: no Ray cluster ({error})") from error
    return ray, True


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
