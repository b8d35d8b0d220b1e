"""A checkpoint file ends in a checksum of its own bytes, is written as a whole, and is read without running code.

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

from shiqrun.errors import InputError, TrainingError
from shiqrun.settings import STAMP
from shiqrun.util.atomic import atomic_path, remove_partials

log = logging.getLogger("shiqrun")

_MARK = b"\nshiqrun sha256 "
_TRAILER = len(_MARK) + 64 + 1
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22
_BLOCK = 1 << 22


class _Damaged(Exception):
    """A `_Damaged` says why the bytes of a checkpoint are not those that were saved."""


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


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint straight into its own directory, as a whole or not at all.

    Raises:
        TrainingError: the file could not be written, for instance because the disk is full; the former one is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    hashing: _Hashing | None = None
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(content, hashing)  # type: ignore[arg-type]
            file.write(_MARK + hashing.sha.hexdigest().encode() + b"\n")
            file.flush()
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else hashing.error if hashing else None
        if cause is None:
            raise
        kept = "the former checkpoint is kept" if path.is_file() else "there is no former checkpoint"
        raise TrainingError(
            f"{path}: the checkpoint cannot be written ({cause.strerror}); {kept}; make room, then go on with resume="
        ) from None


def remove_leftovers(directory: Path, name: str = "*.ckpt") -> None:
    """Delete the partial files that killed writers of checkpoints left; a run has one writer."""
    remove_partials(directory, name)
    for partial in directory.glob(f"{name}.*.tmp"):  # as earlier versions called them
        partial.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content with its tensors mapped from the file, after its checksum was compared.

    Raises:
        InputError: there is no such file, it is damaged, or it holds other things than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return _read(path)
    except _Damaged as damage:
        raise InputError(f"{path}: {damage}; {_way_out(path)}") from None


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


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint.

    Raises:
        _Damaged: it is not what was saved.
        InputError: it holds another type or a function.
    """
    _verify(path)
    try:
        content = load_plain(path, mmap=True)
    except (RuntimeError, EOFError, ValueError, TypeError, KeyError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise _Damaged("the checkpoint cannot be read, it is damaged or no checkpoint") from None
    if not {"global_step", "state_dict", STAMP} <= content.keys():
        raise _Damaged("no checkpoint of shiqrun")
    return content


def _verify(path: Path) -> None:
    """Compare the file with its checksum; the files of earlier versions have only those of the zip's entries.

    Raises:
        _Damaged: they differ.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _TRAILER, 0))
        trailer = file.read()
        file.seek(0)
        if trailer.startswith(_MARK):
            sha, left = hashlib.sha256(), size - _TRAILER
            while left and (block := file.read(min(_BLOCK, left))):
                sha.update(block)
                left -= len(block)
            if trailer != _MARK + sha.hexdigest().encode() + b"\n":
                raise _Damaged("the checkpoint is damaged (its bytes differ from their checksum)")
            return
    if not size:
        raise _Damaged("the checkpoint is empty")
    # A zip without our line ends in its own last record. Otherwise the line or the end of the file is damaged.
    if trailer[-_ZIP_END_BYTES:][:4] != _ZIP_END:
        raise _Damaged("the checkpoint is damaged or cut off")
    try:
        with zipfile.ZipFile(path) as file_of_earlier_version:
            bad = file_of_earlier_version.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        bad = "the list of its entries"
    if bad:
        raise _Damaged(f"the checkpoint is damaged ({bad})")
    log.info("%s has no checksum, as an earlier version saved it; only the checks inside the file were made", path)


def _way_out(path: Path) -> str:
    """Return what a user can do about a damaged checkpoint."""
    run, best = path.parent.parent, path.with_name("best.ckpt")
    again = f"delete {path.name} and resume={run} to train again from step 0"
    if path.name == "best.ckpt":
        return f"take checkpoint=last or the run's policy/ (run={run})"
    try:
        content = _read(best) if best.is_file() else None
    except (_Damaged, InputError):
        content = None
    if content is None:
        return f"there is no whole best.ckpt beside it; {again}"
    step = content["global_step"]
    if "optimizer_states" in content:  # as earlier versions saved it
        return f"best.ckpt is whole and holds step {step}: copy it over {path.name} to go on from there, or {again}"
    return (
        f"best.ckpt is whole and holds the weights alone of step {step}: `shiqrun eval run={run} checkpoint=best` "
        f"evaluates them, but training cannot go on from them; {again}"
    )
