"""Files and directories are replaced as a whole: a kill or a power cut leaves the old content or the new, no mixture.

New content goes to a hidden path beside the target (`.NAME.PID.tmp`), is forced to the disk (`fsync`), takes the
target's name (`os.replace`), and then the directory that holds the name is forced to the disk, too. What a killed
writer leaves is such a hidden path, which no reader looks at and which `remove_partials` deletes.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SUFFIX = ".tmp"
"""The ending of the name of every hidden path."""
_WRITER = re.compile(r"\.(\d+)(\.old)?\.tmp$")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a hidden path to write a file to, which replaces `path` when the block ends without an error.

    After an error in the block `path` is as it was, and the hidden file is gone.
    """
    partial = _hidden(path)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file for writing, which replaces `path` when the block ends without an error."""
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file with this content; text is encoded as UTF-8."""
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a hidden, empty directory to fill, which replaces `path` when the block ends without an error.

    A directory that holds files cannot be replaced in one step: the former one moves away first, so that a kill in
    that moment leaves no directory under the name, but never half of one.
    """
    partial, former = _hidden(path), _hidden(path, ".old")
    for stale in (partial, former):  # of a killed writer: in a container, processes have the same few numbers
        _remove(stale)
    try:
        partial.mkdir(parents=True)
        yield partial
        for entry in (*partial.rglob("*"), partial):
            sync(entry)
        if path.exists():
            path.replace(former)
        partial.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def remove_partials(directory: Path, name: str = "*") -> None:
    """Delete the hidden files and directories that killed writers of `name` (a glob pattern) left in a directory.

    Only for a caller that knows that nobody else is writing there, for instance because it holds the lock.
    """
    for partial in directory.glob(f".{name}.*{SUFFIX}"):
        _remove(partial)


def remove_dead_partials(directory: Path) -> None:
    """Delete the hidden files and directories in a directory whose writers are gone.

    A hidden path with the number of this process is an earlier one's: in a container, processes have the same few
    numbers. So this process must not be writing there.
    """
    for partial in directory.glob(f".*{SUFFIX}"):
        found = _WRITER.search(partial.name)
        if found is not None and (int(found[1]) == os.getpid() or not _is_alive(int(found[1]))):
            _remove(partial)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def sync(path: Path) -> None:
    """Force a file's content, or the names in a directory, to the disk.

    Some file systems cannot do that for a directory; its names are then as safe as they let them be.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(number)


def _remove(path: Path) -> None:
    """Delete a file, or a directory and all that it holds; do nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _hidden(path: Path, mark: str = "") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{mark}{SUFFIX}")
