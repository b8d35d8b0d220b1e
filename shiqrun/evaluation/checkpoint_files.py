"""A checkpoint is saved as a whole and read without running code: one file, or the files of several ranks."""

from pathlib import Path
from typing import Any

from shiqrun.errors import InputError, TrainingError
from shiqrun.evaluation.checkpoint_bytes import Damaged, load_plain, verify, write_content
from shiqrun.evaluation.sharded_files import is_index, load_pieces, make_whole, remove_unnamed, verify_files
from shiqrun.settings import STAMP
from shiqrun.util.atomic import atomic_path, remove_partials


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint straight into its own directory, as a whole or not at all.

    Raises:
        TrainingError: the file could not be written, for instance because the disk is full; the former one is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    try:
        with atomic_path(path) as partial:
            write_content(content, partial)
    except OSError as error:
        raise TrainingError(not_written(path, error.strerror)) from None
    remove_unnamed(path.parent, path.name)


def not_written(path: Path, why: str | None) -> str:
    """Return what a run says when a checkpoint cannot be written."""
    kept = "the former checkpoint is kept" if path.is_file() else "there is no former checkpoint"
    return f"{path}: the checkpoint cannot be written ({why}); {kept}; make room, then go on with resume="


def remove_leftovers(directory: Path, name: str = "*.ckpt") -> None:
    """Delete the partial files and directories that killed writers of checkpoints left; a run has one writer."""
    remove_partials(directory, name)
    for partial in directory.glob(f"{name}.*.tmp"):  # as earlier versions called them
        partial.unlink()
    remove_unnamed(directory, name)


def read_checkpoint(path: Path, share: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """Return a checkpoint's content with its tensors mapped from the disk, after its checksums were compared.

    A tensor of which several files hold some rows each is a `Pieces`.

    Args:
        path: of the checkpoint.
        share: of this process, number and count: ranks divide the files of a sharded checkpoint between them.

    Raises:
        InputError: there is no such file, it is damaged, or it holds other things than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return _read(path, share)
    except Damaged as damage:
        raise InputError(f"{path}: {damage}; {_way_out(path)}") from None


def load_content(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint that `read_checkpoint` has found to be whole, in memory of its own."""
    return dict(make_whole(load_pieces(path))) if is_index(path) else load_plain(path)


def map_content(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint that `read_checkpoint` has found to be whole, mapped from the disk."""
    return load_pieces(path) if is_index(path) else load_plain(path, mmap=True)


def _read(path: Path, share: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """Return the content of a checkpoint.

    Raises:
        Damaged: it is not what was saved.
        InputError: it holds another type or a function.
    """
    verify(path)
    if is_index(path):
        verify_files(path, share)
    try:
        content = map_content(path)
    except (RuntimeError, EOFError, ValueError, TypeError, KeyError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise Damaged("the checkpoint cannot be read, it is damaged or no checkpoint") from None
    if not {"global_step", "state_dict", STAMP} <= content.keys():
        raise Damaged("no checkpoint of shiqrun")
    return content


def _way_out(path: Path) -> str:
    """Return what a user can do about a damaged checkpoint."""
    run, best = path.parent.parent, path.with_name("best.ckpt")
    again = f"delete {path.name} and resume={run} to train again from step 0"
    if path.name == "best.ckpt":
        return f"take checkpoint=last or the run's policy/ (run={run})"
    try:
        content = _read(best) if best.is_file() else None
    except (Damaged, InputError):
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
