"""Rewards of the reference's completions by prompt, a line a prompt, appended as they are known."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiqrun.errors import InputError

FORMAT = 1


class ValueFile:
    """`values.jsonl`: what the values are good with, then a row a prompt.

    A row has the columns of `data=jsonl` (`prompt`, `completions`, `rewards`, `prompt_id`, `answer`), so that the file
    without its first line is a data set of logged trajectories; `trajectories.jsonl` beside a finished file is that.

    Args:
        path: of the file; it need not be there.
        made_with: what equal values need: fingerprints of reference and reward, and how was sampled.

    Attributes:
        rewards: `[K]` float64 of each prompt id.

    Raises:
        InputError: the file was made with something else, or is no such file; the message names what differs.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        self.path, self.made_with = path, dict(made_with)
        self.rewards: dict[str, np.ndarray] = {}
        if path.exists() and path.stat().st_size:
            self._open()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"shiqrun_values": FORMAT, **self.made_with}) + "\n", encoding="utf-8")

    def _open(self) -> None:
        header, rows, whole = read_values(self.path)
        differing = [key for key, now in self.made_with.items() if header.get(key) != now]
        if differing:
            told = "; ".join(f"{key} {header.get(key)} there, {self.made_with[key]} here" for key in differing)
            raise InputError(
                f"{self.path}: these values were made otherwise: {told}. Values are only good with the reference and "
                "the reward that they were made with; make new ones with `shiqrun values`"
            )
        with self.path.open("r+b") as file:
            file.truncate(whole)  # a line that a kill has torn
        self.rewards = {row["prompt_id"]: np.array(row["rewards"], np.float64) for row in rows}

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds prompts, on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                self.rewards[row["prompt_id"]] = np.array(row["rewards"], np.float64)
            file.flush()
            os.fsync(file.fileno())


def read_values(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """(header, rows, bytes up to the end of the last whole row) of a file of values.

    Raises:
        InputError: it cannot be read, is no file of values, or has a row that is broken in the middle.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make values with `shiqrun values`") from error
    lines = [*_lines(data)]
    first = _parsed(lines[0][0]) if lines else None
    if first is None or first.get("shiqrun_values") != FORMAT:
        raise InputError(f"{path}: no file of prompt values; `shiqrun values` makes one, values.jsonl")
    rows, whole = [], lines[0][1]
    for number, (line, end) in enumerate(lines[1:], 2):
        row = _parsed(line)
        if row is None:
            if number < len(lines):
                raise InputError(f"{path}:{number}: a broken row; take it out, its prompt is valued again")
            break
        rows.append(row)
        whole = end
    return first, rows, whole


def _lines(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each line and where it ends; the last one may lack its end."""
    end = 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        yield line, end


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
