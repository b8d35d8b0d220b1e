"""The token view: which trajectories of `credit.jsonl` the page carries, and their numbers."""

from collections.abc import Sequence
from typing import Any

from shiqrun.errors import InputError
from shiqrun.report.run_files import AGAIN, as_number, read_lines
from shiqrun.report.run_records import Run

QUANTITIES = ("advantage", "shifted_value", "residual")
MOST_TOKENS = 60_000
"""Over all trajectories; about 3 MB."""


def credited(runs: Sequence[Run], labels: Sequence[str]) -> tuple[dict[str, Any], int]:
    """What the page's script reads, and how many trajectories there were; of each run in turn while there is room.

    Raises:
        InputError: the lists of a row have different lengths.
    """
    names, queues = [], []
    for run, label in zip(runs, labels, strict=True):
        path = run.directory / "credit.jsonl"
        rows = [_checked(row, f"{path} line {n}") for n, row in enumerate(read_lines(path), 1)]
        if rows:
            names.append(label)
            queues.append(rows)
    found, kept, tokens = sum(map(len, queues)), [], 0
    for place in range(max(map(len, queues), default=0)):
        for number, rows in enumerate(queues):
            if place < len(rows) and tokens + len(rows[place]["tokens"]) <= MOST_TOKENS:
                tokens += len(rows[place]["tokens"])
                kept.append({"run": number, **rows[place]})
    return {"runs": names, "rows": kept}, found


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row with rounded numbers."""
    lists = ("tokens", "action", *QUANTITIES, "reward")
    lengths = {name: len(row[name]) if isinstance(row.get(name), list) else None for name in lists}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise InputError(f"{where}: expected lists of one length, met {lengths}; {AGAIN}")
    made: dict[str, Any] = {name: [_rounded(v) for v in row[name]] for name in (*QUANTITIES, "reward")}
    made |= {name: str(row.get(name) or "") for name in ("kind", "source", "prompt_id")}
    made |= {name: _rounded(row.get(name)) for name in ("return", "beta")}
    return made | {"tokens": [str(t) for t in row["tokens"]], "action": [bool(a) for a in row["action"]]}


def _rounded(value: Any) -> float | None:
    number = as_number(value)
    return None if number is None else float(f"{number:.4g}")
