"""`samples.jsonl` holds the completions of each evaluation of a run, in a row each with reward and KL."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.util.atomic import write_atomic
from shiqrun.util.jsonl import Row, append_lines, read_lines

log = logging.getLogger("shiqrun")


def append_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows (step, prompt, completion, reward, KL, ...) to `samples.jsonl`, and force them to disk."""
    append_lines(path, rows)


class SamplesFile:
    """A `SamplesFile` is the `samples.jsonl` of a run that trains, and knows the hash of what it holds.

    Args:
        path: of the file; rows later than `keep`, which a resumed run writes again, and a torn last row are dropped.
        keep: the last step whose rows are kept; -1 keeps none, so that the file may hold anything.
        mark: what the checkpoint says that the file holds, from `mark`; it then holds exactly that.
        advice: what to do about a damaged file, for messages.

    Raises:
        InputError: a row is broken, or one that was there when the checkpoint was saved is missing or changed.
    """

    def __init__(
        self,
        path: Path,
        keep: int,
        mark: dict[str, Any] | None = None,
        advice: str = "take the line out, or restore the file from a copy",
    ) -> None:
        self.path, self._advice = path, advice
        content = path.read_bytes() if path.is_file() else b""
        kept = self._of_mark(content, mark) if mark is not None else self._up_to(content, keep)
        torn = len(content) - content.rfind(b"\n") - 1
        if torn:
            log.info(f"{path}: dropped a torn last line ({torn} bytes) that a kill or power cut left")
        if path.is_file() and kept != content:
            write_atomic(path, kept)
        self._bytes, self._hash = len(kept), hashlib.sha256(kept)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and force them to disk."""
        append_samples(self.path, rows)
        with self.path.open("rb") as file:
            file.seek(self._bytes)
            added = file.read()
        self._bytes += len(added)
        self._hash.update(added)

    def mark(self) -> dict[str, Any]:
        """Return what a checkpoint keeps to find the rows again."""
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def _of_mark(self, content: bytes, mark: dict[str, Any]) -> bytes:
        kept = content[: mark["bytes"]]
        if len(kept) < mark["bytes"]:
            raise InputError(
                f"{self.path}: holds {len(kept)} of the {mark['bytes']} bytes that were there when the checkpoint was "
                f"saved; {self._advice}"
            )
        if hashlib.sha256(kept).hexdigest() != mark["sha256"]:
            raise InputError(f"{self.path}: rows have changed since the checkpoint was saved; {self._advice}")
        return kept

    def _up_to(self, content: bytes, step: int) -> bytes:
        """Return the lines up to a step, for a checkpoint of an earlier version, which knows no mark."""
        if step < 0 or not content:
            return b""
        lines = read_lines(self.path, self._advice, _has_step)
        return b"".join(content[line.start : line.end] for line in lines if line.row["step"] <= step)


def _has_step(row: Row) -> bool:
    return isinstance(row.get("step"), int)
