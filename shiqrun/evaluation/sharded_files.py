"""A checkpoint of sharded weights is a directory with a file of each rank, and a small file that names the directory.

    checkpoints/last.ckpt           the index: the directory's name, and the checksum of each file in it
    checkpoints/last.ckpt-12/       rank-0.ckpt, rank-1.ckpt, ...: the rows that each rank holds, of step 12

Every save fills a new directory. Only when all files are on the disk does a new index replace the former one, in one
step, and only then does the former directory go. So a kill at any moment leaves a whole checkpoint under the name, and
nothing here needs links.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from shiqrun.evaluation.checkpoint_bytes import Damaged, load_plain, trailer, verify, write_content
from shiqrun.util.atomic import sync, write_atomic

_HEADER = b"shiqrun index of a sharded checkpoint\n"
_PLACE = "rows of ranks"
"""The key of the dict that stands for a sharded tensor in the file of rank 0."""
_NUMBERED = re.compile(r"(.+\.ckpt)-\d+(\.\d+)?$")


@dataclass
class Pieces:
    """A `Pieces` is a tensor of which several files hold some rows each, mapped from the disk.

    Attributes:
        shape: of the whole tensor.
        parts: the number of its first row, and the rows, of each file.
    """

    shape: tuple[int, ...]
    parts: list[tuple[int, Tensor]] = field(default_factory=list)

    @property
    def dtype(self) -> Any:
        """Return the dtype of the rows."""
        return self.parts[0][1].dtype

    def fill(self, rows: Tensor, first: int) -> None:
        """Copy rows from number `first` on into a tensor, as many as it has."""
        for start, part in self.parts:
            low, high = max(start, first), min(start + len(part), first + len(rows))
            if low < high:
                rows[low - first : high - first].copy_(part[low - start : high - start])

    def whole(self) -> Tensor:
        """Return a new tensor of all rows."""
        out = self.parts[0][1].new_empty(self.shape)
        self.fill(out, 0)
        return out


def pick_out(content: Any, is_sharded: Callable[[Any], bool], name: str = "") -> tuple[Any, dict[str, Any]]:
    """Return nested dicts and lists with a mark in place of each sharded tensor, and those tensors by their places."""
    if is_sharded(content):
        return {_PLACE: name, "shape": list(content.shape)}, {name: content}
    if not isinstance(content, dict | list):
        return content, {}
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    plain: dict[Any, Any] = {}
    found: dict[str, Any] = {}
    for key, value in pairs:
        plain[key], more = pick_out(value, is_sharded, f"{name}/{key}")
        found |= more
    return (plain if isinstance(content, dict) else list(plain.values())), found


def put_back(plain: Any, tensors: dict[str, Pieces]) -> Any:
    """Return nested dicts and lists with a `Pieces` in place of each mark, whose shape it gets."""
    if isinstance(plain, dict) and _PLACE in plain:
        pieces = tensors[plain[_PLACE]]
        pieces.shape = tuple(plain["shape"])
        return pieces
    if isinstance(plain, dict):
        return {key: put_back(value, tensors) for key, value in plain.items()}
    return [put_back(value, tensors) for value in plain] if isinstance(plain, list) else plain


def make_whole(content: Any) -> Any:
    """Return nested dicts and lists with the whole tensor in place of each `Pieces`."""
    if isinstance(content, Pieces):
        return content.whole()
    if isinstance(content, dict):
        return {key: make_whole(value) for key, value in content.items()}
    return [make_whole(value) for value in content] if isinstance(content, list) else content


def new_directory(path: Path, step: int) -> Path:
    """Make an empty directory for a checkpoint `path` of a step and return it."""
    number = 1
    while True:
        folder = path.with_name(f"{path.name}-{step}" + (f".{number}" if number > 1 else ""))
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def write_rank(folder: Path, rank: int, plain: Any, rows: dict[str, tuple[int, Tensor]]) -> dict[str, str]:
    """Write the file of one rank and force it to the disk; return its name with its SHA-256.

    Args:
        folder: from `new_directory`.
        rank: of the process.
        plain: from `pick_out` on rank 0, None on the others.
        rows: first row and rows of each sharded tensor, by the names of `pick_out`.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(exist_ok=True)  # another node may not see it yet
    path = folder / f"rank-{rank}.ckpt"
    content = {"plain": plain, "rows": {name: {"first": at, "rows": x} for name, (at, x) in rows.items()}}
    digest = write_content(content, path)
    sync(path)
    return {path.name: digest}


def publish(path: Path, folder: Path, files: dict[str, str]) -> None:
    """Let a checkpoint's name stand for a directory whose files are written, and delete the former directory."""
    sync(folder)
    sync(folder.parent)
    text = _HEADER + json.dumps({"directory": folder.name, "files": files}).encode()
    write_atomic(path, text + trailer(hashlib.sha256(text).hexdigest()))
    remove_unnamed(path.parent, path.name)


def is_index(path: Path) -> bool:
    """Return whether a checkpoint is the index of a directory; damage is for `read_index` to find."""
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER


def _is_one_file(path: Path) -> bool:
    """Return whether a checkpoint is one file of `torch.save`, a zip."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def read_index(path: Path) -> tuple[Path, dict[str, str]]:
    """Return the directory of a checkpoint and the checksums of its files.

    Raises:
        Damaged: the index is not what was written.
    """
    verify(path)
    try:
        known = json.loads(path.read_bytes().removeprefix(_HEADER).splitlines()[0])
        return path.with_name(known["directory"]), {Path(name).name: digest for name, digest in known["files"].items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Damaged("it is no checkpoint of shiqrun") from None


def verify_files(path: Path, share: tuple[int, int] = (0, 1)) -> None:
    """Compare the files of a checkpoint's directory with the checksums in its index.

    Args:
        path: the index.
        share: of this process, number and count: ranks divide the files between them.

    Raises:
        Damaged: one is missing or another one.
    """
    folder, files = read_index(path)
    for name, digest in list(files.items())[share[0] :: share[1]]:
        file = folder / name
        if not file.is_file():
            raise Damaged(f"{file} is missing")
        try:
            found = verify(file)
        except Damaged as damage:
            raise Damaged(f"{file}: {damage}") from None
        if found != digest:
            raise Damaged(f"{file}: the file is of another save")


def load_pieces(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint with its sharded tensors mapped from the files, which are not compared."""
    folder, files = read_index(path)
    plain: Any = {}
    tensors: dict[str, Pieces] = {}
    for name in files:
        content = load_plain(folder / name, mmap=True)
        plain = plain or content["plain"]
        for place, found in content["rows"].items():
            tensors.setdefault(place, Pieces(())).parts.append((found["first"], found["rows"]))
    return dict(put_back(plain, tensors))


def directories(folder: Path, name: str = "*.ckpt") -> Iterator[tuple[Path, Path]]:
    """Yield checkpoint and directory for each directory of a sharded checkpoint, named by its index or not."""
    for directory in folder.glob(f"{name}-*"):
        if directory.is_dir() and (found := _NUMBERED.match(directory.name)):
            yield directory.with_name(found[1]), directory


def remove_unnamed(folder: Path, name: str = "*.ckpt") -> None:
    """Delete the directories that no checkpoint names: of killed savers, or of the former save.

    Where an index is damaged its directory stays, so that the index can be restored.
    """
    for path, directory in directories(folder, name):
        try:
            named = read_index(path)[0] if path.is_file() and not _is_one_file(path) else None
        except Damaged:
            continue
        if named != directory:
            shutil.rmtree(directory)
