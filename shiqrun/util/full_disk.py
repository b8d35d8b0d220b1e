"""A disk that takes no more is one line for a user, wherever in a program the write failed."""

import errno
from contextlib import suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of the errors of a full disk, a used-up quota, and a file beyond the largest size allowed."""


def full_disk(error: BaseException | None, folder: Path | None = None) -> str | None:
    """Return one line about a write that a full disk refused, None if the error has another cause.

    Args:
        error: as it was caught; libraries raise errors of their own while they handle the one of the disk.
        folder: where the command was writing, if known, for errors that name no file.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in FULL:
            return (
                f"{error.filename or folder or 'a file'}: cannot be written ({error.strerror}); what was "
                "written before is kept; make room and try again"
            )
        error = error.__cause__ or error.__context__
    return None


def append_if_possible(path: Path, text: str) -> None:
    """Append text to a file, or nothing where the disk does not take it."""
    with suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(text)
