"""`metrics.csv` holds every logged metric, one row a logged step, on disk as soon as the metric is known."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from shiqrun.util.atomic import atomic_writer


class MetricsFile(Logger):
    """A `MetricsFile` is a Lightning logger that writes `metrics.csv`: the column `step` and one for every metric.

    Lightning's own CSV logger flushes about every hundred steps, so that a killed run would have no metrics.

    Args:
        path: of the file; the rows that it holds are kept, but for a torn last one.
        keep: the last step whose row is kept, because a resumed run writes later ones again; None keeps all.
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
