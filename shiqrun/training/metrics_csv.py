"""`metrics.csv` holds every logged metric, one row a logged step, on disk as soon as the metric is known."""

import csv
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from shiqrun.console import is_main_process
from shiqrun.errors import InputError
from shiqrun.util.atomic import atomic_writer

log = logging.getLogger("shiqrun")
Mark = dict[str, Any]
"""What a checkpoint knows of the rows at its step: their number and hash, and the columns that the last one has."""


class MetricsFile(Logger):
    """A `MetricsFile` is a Lightning logger that writes `metrics.csv`: the column `step` and one for every metric.

    Lightning's own CSV logger flushes about every hundred steps, so that a killed run would have no metrics.

    Args:
        path: of the file; the rows that it holds are kept, but for a torn last one.
        keep: the last step whose row is kept, because a resumed run writes later ones again; None keeps all, and -1
            none, so that the file may hold anything.
        mark: what the checkpoint says that the file holds, from `mark`; the rows are then exactly those.
        advice: what to do about a damaged file, for messages.

    Raises:
        InputError: the file is damaged, or lacks or changes a row that was there when the checkpoint was saved.
    """

    def __init__(
        self, path: Path, keep: int | None = None, mark: Mark | None = None, advice: str = "restore it from a copy"
    ) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._hash = hashlib.sha256()  # of all rows but the last, which may still get metrics
        there = path.is_file()
        rows = _read(path, advice) if there and keep != -1 else iter(())
        for row in islice(rows, mark["rows"] if mark else None):
            if keep is None or int(row["step"]) <= keep:
                self._add(row)
        if mark is not None:
            self._expect(mark, advice)
        self.columns = ["step", *sorted({k for r in self.rows for k, v in r.items() if v and k != "step"})]
        if there and is_main_process():
            self._rewrite()

    def _add(self, row: dict[str, Any]) -> None:
        if self.rows:
            self._hash.update(_row_text(self.rows[-1]))
        self.rows.append(row)

    def _expect(self, mark: Mark, advice: str) -> None:
        """Compare the rows with the mark, and take back what a failed evaluation logged beside the last one.

        Raises:
            InputError: they are not there as they were.
        """
        if len(self.rows) < mark["rows"]:
            raise InputError(
                f"{self.path}: holds {len(self.rows)} of the {mark['rows']} rows that were there when the "
                f"checkpoint was saved; {advice}"
            )
        if self.rows:
            self.rows[-1] = {k: v for k, v in self.rows[-1].items() if k in ("step", *mark["last"])}
        if self._digest() != mark["sha256"]:
            raise InputError(f"{self.path}: rows have changed since the checkpoint was saved; {advice}")

    def mark(self) -> Mark:
        """Force the rows to disk, and return what a checkpoint keeps to find them again."""
        if self.path.is_file() and is_main_process():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        last = sorted(k for k, v in self.rows[-1].items() if k != "step" and v not in ("", None)) if self.rows else []
        return {"rows": len(self.rows), "last": last, "sha256": self._digest()}

    def _digest(self) -> str:
        found = self._hash.copy()
        found.update(_row_text(self.rows[-1]) if self.rows else b"")
        return found.hexdigest()

    def latest(self) -> dict[str, float]:
        """Return the last logged value of each metric."""
        return {k: float(v) for row in self.rows for k, v in row.items() if k != "step" and v not in ("", None)}

    @property
    def name(self) -> str:
        """Return the name of the logger, which Lightning asks for."""
        return "metrics"

    @property
    def version(self) -> str:
        """Return the version of the logger, which Lightning asks for."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because the config is in `.hydra/config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write metrics to the row of `step`, the last row or a new one; a new metric adds a column."""
        fresh = not self.rows or int(self.rows[-1]["step"]) != step
        if fresh:
            self._add({"step": step})
        self.rows[-1].update(metrics)
        new = sorted(set(metrics) - set(self.columns))
        if new:
            self.columns = ["step", *sorted({*self.columns[1:], *new})]
        if new or not fresh or len(self.rows) == 1:
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(self.rows[-1])

    def _rewrite(self) -> None:
        with atomic_writer(self.path) as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)


def _row_text(row: Mapping[str, Any]) -> bytes:
    """Return a row's text for its hash, which no column of later rows changes."""
    known = sorted((k, str(v)) for k, v in row.items() if k != "step" and v not in ("", None))
    return f"{row['step']}{known}\n".encode()


def _read(path: Path, advice: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a `metrics.csv` without a torn last one; a power cut may leave zero bytes in its place.

    Raises:
        InputError: another row is broken; the message names file and line.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        log.info(f"{path}: dropped a torn last line ({len(content) - len(whole)} bytes) that a kill or power cut left")
    number = 1
    try:
        reader = csv.reader(io.StringIO(whole.decode(), newline=""))
        header = next(reader, ["step"])
        for cells in reader:
            number = reader.line_num
            row = dict(zip(header, cells, strict=True))
            int(row["step"]), [float(value) for value in cells if value]
            yield row
    except (ValueError, KeyError, csv.Error) as error:
        raise InputError(f"{path}:{number}: a broken line ({error}); {advice}") from None
