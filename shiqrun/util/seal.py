"""A sealed text starts with a comment that has the SHA-256 of the lines below it, so that a change of them is found.

It is for text files that people read and may edit, such as a run's saved config: who means an edit removes the comment.
"""

import hashlib

WORD = "sha256"
ADVICE = f"restore it, or remove its first line (# {WORD} ...) to keep an edit that is meant"
"""What a reader of a changed text can do."""


def sealed(text: str) -> str:
    """Return a YAML text with its seal in front."""
    return _seal(text) + text


def is_changed(text: str) -> bool:
    """Return whether a text has a seal that does not fit; files of earlier versions have none.

    The seal stands in front because a text that was cut at its end would have lost one there.
    """
    first, newline, rest = text.partition("\n")
    return WORD in first and first + newline != _seal(rest)


def _seal(text: str) -> str:
    return (
        f"# {WORD} {hashlib.sha256(text.encode()).hexdigest()} of the lines below; remove this line to keep an edit\n"
    )
