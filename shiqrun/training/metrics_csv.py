"""`metrics.csv`: every logged number, one row a logged step, on disk as soon as it is known."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from shiqrun.util.atomic import atomic_writer


class MetricsFile(Logger):
    """A Lightning logger that writes `step` and every metric; a new metric adds a column.

    Lightning's own CSV logger flushes about every hundred steps, so that a killed run has no metrics.

    Args:
        path: the file; rows it already holds are kept.
        keep: drop rows of later steps than this (a resumed run writes them again); None keeps all.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            text = path.read_bytes().decode()
            whole = text[: text.rfind("\n") + 1]  # a kill may have torn the last row
            rows = csv.DictReader(io.StringIO(whole, newline=""))
            self.rows = [r for r in rows if keep is None or int(r["step"]) <= keep]
        self.columns = ["step", *sorted({k for r in self.rows for k, v in r.items() if v and k != "step"})]
        if path.is_file():
            self._rewrite()

    def latest(self) -> dict[str, float]:
        """The last number logged of each metric."""
        return {k: float(v) for row in self.rows for k, v in row.items() if k != "step" and v not in ("", None)}

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in `.hydra/config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds numbers to the row of `step`, which is the last row or a new one."""
        fresh = not self.rows or int(self.rows[-1]["step"]) != step
        if fresh:
            self.rows.append({"step": step})
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
