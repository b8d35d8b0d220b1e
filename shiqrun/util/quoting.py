"""This module quotes values for a command line: as an override of Hydra, and for the shell around it."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError


def as_override(value: Any) -> str:
    r"""Return a value or a list of values as a Hydra override: in single quotes, with `\` before a quote inside."""
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value)).replace("'", r"\'")
    return f"'{text}'"


def override_value(value: Any) -> str:
    """Return a Python value as text that Hydra reads as the same value.

    Raises:
        InputError: a value that no config holds.
    """
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, str | Path):
        return as_override(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{override_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(override_value, value)) + "]"
    raise InputError(f"a {type(value).__name__} as a setting: expected a text, number, list, mapping, path or None")


def unquote(text: str) -> str:
    """Return the value of a Hydra override without the quotes around it, if there are any."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        return text
    mark = text[0]
    return re.sub(rf"(\\+)({mark}|\Z)", lambda m: "\\" * (len(m[1]) // 2) + m[2], text[1:-1])


def quote_for_shell(path: Path) -> str:
    """Return a path as a user must type it after `key=`, so that the shell and then Hydra read it unchanged."""
    text = str(path)
    if shlex.quote(text) == text and "=" not in text:
        return text
    words = as_override(text)
    return shlex.quote(words) if re.search(r'["$`!]|\\(?!\')', words) else f'"{words}"'


def near_or_portable(path: str, start: Path) -> str:
    """Return an absolute path relative to `start` where that is at most two folders up, else its last two parts."""
    if not path.startswith("/"):
        return path
    relative = os.path.relpath(path, start)
    return relative if not relative.startswith("../../../") else str(portable(path))


def portable(value: Any) -> Any:
    """Return what a shared page says of a value: of an absolute path, its last two parts; anything else unchanged."""
    if isinstance(value, str) and value.startswith("/") and len(Path(value).parts) > 2:
        return "/".join(Path(value).parts[-2:])
    return value


def slug(text: str) -> str:
    """Return `text` as a part of a file name: at most 100 characters, each run of unsafe ones as one underscore.

    Letters, digits and `. _ = + -` are safe.
    """
    return re.sub(r"[^\w.=+-]+", "_", text, flags=re.ASCII)[:100].strip("_")
