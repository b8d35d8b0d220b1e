"""The row store keeps encoded trajectories in one mapped file a data set, which all ranks, jobs and later runs share.

The file's name is a hash of all that the rows depend on (`row_keys.py`). A lock makes jobs that start together encode
once. The file takes its name when it is whole and is checked whenever it is opened; a damaged one is written again.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shiqrun.batching.prompt_names import PromptNames
from shiqrun.batching.row_file import DamagedFile, Progress, RowFile, unshown
from shiqrun.batching.row_writer import SPLITS, RowWriter
from shiqrun.batching.stored_rows import StoredTrajectories, stored_split
from shiqrun.data.drops import Drops
from shiqrun.errors import InputError
from shiqrun.util.atomic import remove_partials
from shiqrun.util.lock import wait_for_lock

log = logging.getLogger("shiqrun")
WAITING = "waiting for the rows that another job or rank encodes"


@dataclass(frozen=True)
class StoredData:
    """A `StoredData` holds both splits of a data set as the row store has them.

    Attributes:
        splits: the trajectories by split.
        prompts: names of the training prompts.
        dropped: number of completions left out, by reason.
        fingerprint: hash of both splits.
    """

    splits: dict[str, StoredTrajectories]
    prompts: PromptNames
    dropped: Counter[str]
    fingerprint: str


@dataclass(frozen=True)
class RowStore:
    """A `RowStore` is the directory of the files of encoded rows.

    Args:
        directory: of the files.
        writes: rows that are not there are written; a dry run only reads.
    """

    directory: Path
    writes: bool = True

    def open(
        self, key: str, write: Callable[[RowWriter], PromptNames], *, distinct: bool, progress: Progress = unshown
    ) -> StoredData | None:
        """Return the stored rows with this key, after `write` has encoded them where they are not there.

        Args:
            key: from `rows_key`.
            write: adds both splits to the writer, and returns the names of the training prompts.
            distinct: the first of equal trajectories of a group is kept alone.
            progress: shows how far writing and checking are.

        Returns:
            None where the rows are not there and are not to be written, or the directory cannot be written.

        Raises:
            InputError: the disk is full, or the data cannot be read.
        """
        path = self.directory / f"rows-{key}.rows"
        if path.exists() and (found := self._opened(path, progress)) is not None:
            return found
        if not self.writes:
            return None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with wait_for_lock(path.with_suffix(".lock"), WAITING):
                found = self._opened(path, progress) if path.exists() else None
                return found or self._written(path, write, distinct, progress)
        except OSError as error:
            if path.with_suffix(".parts").exists():
                raise InputError(
                    f"cache_dir={self.directory.parent}: {error}; the rows encoded so far are kept. Make room or give "
                    "another cache_dir"
                ) from error
            log.warning("cache_dir=%s: %s; encoded rows are not kept", self.directory.parent, error)
            return None

    def _written(
        self, path: Path, write: Callable[[RowWriter], PromptNames], distinct: bool, progress: Progress
    ) -> StoredData:
        """Encode all rows, write their file, and return what is in it."""
        remove_partials(self.directory, path.name)
        parts = path.with_suffix(".parts")
        parts.mkdir(exist_ok=True)
        remove_partials(parts)
        writer = RowWriter(parts, distinct=distinct)
        try:
            with logged() as said:
                names = write(writer)
            writer.join(path, names.names, said, progress)
        except InputError:
            shutil.rmtree(parts, ignore_errors=True)  # the data are wrong: mended, they have another key
            raise
        shutil.rmtree(parts, ignore_errors=True)
        return _data_in(RowFile(path, progress))

    def _opened(self, path: Path, progress: Progress) -> StoredData | None:
        """Return the rows of a file, and log what reading the data said; None where the file is damaged."""
        try:
            file = RowFile(path, progress)
        except DamagedFile as error:
            log.warning("%s: %s; its rows are encoded again", path, error)
            if self.writes:
                path.unlink(missing_ok=True)
            return None
        for level, text in file.facts["said"]:
            log.log(level, "%s", text)
        return _data_in(file)


def _data_in(file: RowFile) -> StoredData:
    width = file.facts["width"]
    names = file["names"].view(f"S{width}")
    splits = {split: stored_split(file, split) for split in SPLITS}
    return StoredData(splits, PromptNames(names), Drops.of(file.facts), file.facts["fingerprint"])


class _Notes(logging.Filter):
    """This filter notes level and text of messages about the data, and lets pass what is as grave as `shown`."""

    def __init__(self, shown: int) -> None:
        super().__init__()
        self.shown, self.said = shown, list[tuple[int, str]]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Note a message, and return whether it is shown."""
        if record.module != "row_writer":  # which speaks of this start alone
            self.said.append((record.levelno, record.getMessage()))
        return record.levelno >= self.shown


@contextmanager
def logged() -> Iterator[list[tuple[int, str]]]:
    """Yield the list of log messages of the block, also of those that a quiet rank does not show."""
    notes, level = _Notes(log.getEffectiveLevel()), log.level
    log.setLevel(min(notes.shown, logging.INFO))
    log.addFilter(notes)
    try:
        yield notes.said
    finally:
        log.removeFilter(notes)
        log.setLevel(level)
