"""`command_words` turns the arguments of a Python call into the words of a command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from shiqrun.errors import InputError
from shiqrun.util.quoting import override_value

NODES = ("algo", "data", "endpoint", "eval", "hardware", "logger", "model", "reward", "rollout", "trainer", "values")
"""Nodes of the config: `data_path=` sets `data.path`. All other settings keep their names (`run_dir`, `seed`)."""


def command_words(overrides: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return the words behind a command: the overrides, then the settings.

    Args:
        overrides: as on the command line, without quotes for the shell: `"algo=shiq"`.
        settings: values by name, of which the first underscore behind the name of a node stands for a dot:
            `data_path="rows.jsonl"` is `data.path=rows.jsonl`.

    Raises:
        InputError: an override that is no text with an equals sign or a tilde.
    """
    for word in overrides:
        if not isinstance(word, str) or not ("=" in word or word.startswith("~")):
            raise InputError(f"{word!r}: expected an override such as 'algo=shiq'; other values by name: data_path=...")
    return [*overrides, *(f"{setting_key(name)}={override_value(value)}" for name, value in settings.items())]


def setting_key(name: str) -> str:
    """Return the key of the config that a keyword argument sets."""
    node, _, rest = name.partition("_")
    return f"{node}.{rest}" if node in NODES and rest else name
