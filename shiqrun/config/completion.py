"""`paths` and `choices` complete words of a command line that Hydra does not complete."""

from importlib.resources import files
from pathlib import Path

PATHS = ("path", "run", "resume", "reference", "reward", "values", "targets", "out", "dir", "file")
"""The last part of keys whose values are files or directories, alone or behind an underscore."""


def paths(word: str) -> list[str]:
    """Return the completions of `key=START` by the files and directories that begin with START.

    Args:
        word: the word at the cursor.

    Returns:
        `key=PATH` for each, a directory with a slash behind it; none where the key takes no path.
    """
    key, equals, start = word.partition("=")
    if not equals or key.rpartition(".")[2].rpartition("_")[2] not in PATHS:
        return []
    head, slash, name = start.rpartition("/")
    folder = Path(head + slash).expanduser()
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.name.startswith(name) and (name or entry.name[0] != ".")]
    return [f"{key}={head}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in sorted(found)]


def choices(group: str) -> list[str]:
    """Return the project's own choices of a config group."""
    names = (entry.name for entry in (files("shiqrun.conf") / group).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name[0] != "_")
