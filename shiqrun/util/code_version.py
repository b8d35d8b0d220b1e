"""`git_commit` returns the commit of the code that runs: of its checkout, or the one that its wheel was built from."""

import subprocess
from pathlib import Path

import shiqrun

PACKAGE = Path(shiqrun.__file__).parent
BUILT_FROM = "commit.txt"
"""The file in an installed package that holds the commit it was built from; setup.py writes it."""


def git_commit() -> str | None:
    """Return the commit of shiqrun's own code, with `+` if it has changes; None where no history is known."""
    if not (PACKAGE.parent / ".git").exists():  # a repository further up is its user's own
        file = PACKAGE / BUILT_FROM
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None
    try:
        commit, changes = (_git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")


def describe() -> str:
    """Return the name, the version and, where it is known, the short commit of the code."""
    commit = git_commit()
    known = f" (commit {commit[:12]}{'+' if commit.endswith('+') else ''})" if commit else ""
    return f"shiqrun {shiqrun.__version__}{known}"


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    ).stdout.strip()
