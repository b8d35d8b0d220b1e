"""`expect_reachable` checks a download from the Hugging Face Hub first, and says in seconds what to pass instead."""

import os
import socket
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from shiqrun.errors import InputError

PROBE_SECONDS = 5.0
INSTEAD = {
    "model.path": "pass model.path=DIRECTORY",
    "data.path": "pass data.path=FILE_OR_DIRECTORY",
    "reward.path": "pass reward=DIRECTORY",
}


def is_offline() -> bool:
    """Return whether the user asked the Hub library to stay offline."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def expect_reachable(identifier: str, option: str) -> None:
    """Check within `PROBE_SECONDS` that a model or data set of the Hub is cached or can be downloaded.

    Args:
        identifier: Hub id of the model or data set.
        option: the setting that should name a local copy instead, a key of INSTEAD.

    Raises:
        InputError: it is not in the local cache, and the Hub cannot be reached or HF_HUB_OFFLINE is set.
    """
    if is_cached(identifier):
        return
    instead = INSTEAD.get(option, f"set {option} to a local copy")
    if is_offline():
        raise InputError(f"{identifier} is not on this machine and HF_HUB_OFFLINE is set; {instead}")
    if (why := why_unreachable()) is not None:
        raise InputError(f"{identifier} is not on this machine and {why}; {instead}")


def why_unreachable() -> str | None:
    """Return why the Hub cannot be reached, which is found out within `PROBE_SECONDS`; None where it can."""
    where = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxy = None if proxy_bypass(where.hostname or "") else getproxies().get(where.scheme)
    door = urlparse(proxy) if proxy else where
    try:
        port = door.port or {"http": 80}.get(door.scheme, 443)
        socket.create_connection((door.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        return f"{where.hostname} cannot be reached ({error})"
    return None


def is_cached(identifier: str) -> bool:
    """Return whether the local cache of the Hub has a model or data set, so that its name is no path."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = identifier.replace("/", "--")
    return any(os.path.isdir(os.path.join(HF_HUB_CACHE, f"{kind}--{folder}")) for kind in ("models", "datasets"))


def offline_hint(identifier: str, option: str = "model.path") -> str:
    """Return what to add to the message of a loading error where the user asked to stay offline, else an empty text."""
    return f" (HF_HUB_OFFLINE is set; {INSTEAD[option]})" if is_offline() and not os.path.isdir(identifier) else ""
