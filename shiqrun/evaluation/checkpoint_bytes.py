"""One file of a checkpoint ends in a checksum of its own bytes, and is read without running code.

The file is what `torch.save` writes, and after that one line with the SHA-256 of all bytes before it. torch finds its
content in spite of that line, and a file and its checksum cannot be parted by a kill.
"""

import hashlib
import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from shiqrun.errors import InputError

log = logging.getLogger("shiqrun")

_MARK = b"\nshiqrun sha256 "
_TRAILER = len(_MARK) + 64 + 1
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22
_BLOCK = 1 << 22


class Damaged(Exception):
    """A `Damaged` says why the bytes of a checkpoint are not those that were saved."""


class _Hashing:
    """A `_Hashing` writes to a file, computes the SHA-256 of what it writes, and keeps the error of a full disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of the data; torch turns an error here into another one, so it is kept."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is closed."""


def write_content(content: dict[str, Any], path: Path) -> str:
    """Write tensors and plain values, and their checksum, to a file; return the SHA-256 of what is before its line.

    Tensors are streamed one after the other, those of a GPU by way of one copy of each.

    Raises:
        OSError: it cannot be written, for instance because the disk is full.
    """
    hashing: _Hashing | None = None
    try:
        with path.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(content, hashing)  # type: ignore[arg-type]
            file.write(trailer(hashing.sha.hexdigest()))
    except RuntimeError:
        if hashing is None or hashing.error is None:
            raise
        raise hashing.error from None
    return hashing.sha.hexdigest()


def trailer(digest: str) -> bytes:
    """Return the line that follows content with this SHA-256."""
    return _MARK + digest.encode() + b"\n"


def load_plain(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Return a checkpoint's tensors and plain values on the CPU; nothing in the file can run code.

    Raises:
        InputError: it holds another type or a function.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise InputError(
            f"{path}: it holds code or a foreign type{what}, which shiqrun never saves, so it is not loaded; "
            "use a checkpoint that a run of yours has saved"
        ) from None


def verify(path: Path) -> str | None:
    """Compare the file with its checksum and return that, None for a file of an earlier version.

    Those have only the checksums of the zip's entries.

    Raises:
        Damaged: they differ.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _TRAILER, 0))
        end = file.read()
        file.seek(0)
        if end.startswith(_MARK):
            sha, left = hashlib.sha256(), size - _TRAILER
            while left and (block := file.read(min(_BLOCK, left))):
                sha.update(block)
                left -= len(block)
            if end != trailer(sha.hexdigest()):
                raise Damaged("the checkpoint is damaged (its bytes differ from their checksum)")
            return sha.hexdigest()
    if not size:
        raise Damaged("the checkpoint is empty")
    # A zip without our line ends in its own last record. Otherwise the line or the end of the file is damaged.
    if end[-_ZIP_END_BYTES:][:4] != _ZIP_END:
        raise Damaged("the checkpoint is damaged or cut off")
    try:
        with zipfile.ZipFile(path) as file_of_earlier_version:
            bad = file_of_earlier_version.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        bad = "the list of its entries"
    if bad:
        raise Damaged(f"the checkpoint is damaged ({bad})")
    log.info("%s has no checksum, as an earlier version saved it; only the checks inside the file were made", path)
    return None
