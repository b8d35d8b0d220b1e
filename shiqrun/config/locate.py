"""`locate` imports the function or class to which a dotted name in a config, such as a `_target_`, refers."""

from typing import Any

from shiqrun.errors import InputError


def locate(key: str, name: Any) -> Any:
    """Import and return the function or class with a dotted name.

    Args:
        key: where the name stands in the config, for the message.
        name: as `shiqrun.losses.shiq`.

    Raises:
        InputError: there is no such name, it cannot be called, or its module cannot be imported.
    """
    from hydra._internal.utils import _locate  # hydra.utils.get_object would log the error as well

    try:
        found = _locate(name)
    except Exception as error:
        raise InputError(f"{key}: cannot import {name!r}: {str(error).strip()}") from error
    if not callable(found):
        raise InputError(f"{key}: {name!r} is {type(found).__name__}, expected a function or a class")
    return found
