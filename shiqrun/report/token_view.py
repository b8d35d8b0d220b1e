"""`select_trajectories` selects the trajectories whose tokens the report's page colours by their credit.

Training writes the numbers of each token to `credit.jsonl` (`shiqrun.evaluation.credit`).
"""

from collections.abc import Sequence
from typing import Any

from shiqrun.errors import InputError
from shiqrun.report.run_files import AGAIN, as_number, read_lines
from shiqrun.report.run_records import RunRecord
from shiqrun.util.quoting import portable

QUANTITIES = ("advantage", "shifted_value", "residual")
PROBABILITIES = ("logp", "reference_logp")
"""The log-probabilities of each token, nats; runs of older versions have none."""
MOST_TOKENS = 60_000
"""The largest number of tokens on the page, over all trajectories; about 3 MB."""


def select_trajectories(runs: Sequence[RunRecord], labels: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Return the trajectories whose tokens are on the page, as tokens.js reads them, and how many the runs have.

    Where the page has no room for all, every run gets the same share.

    Raises:
        InputError: the lists of a row have different lengths.
    """
    names, queues = [], []
    for run, label in zip(runs, labels, strict=True):
        path = run.directory / "credit.jsonl"
        rows = [_read_row(row, f"{path} line {n}") for n, row in enumerate(read_lines(path), 1)]
        if rows:
            names.append(label)
            queues.append(rows)
    found, selected, tokens = sum(map(len, queues)), [], 0
    for place in range(max(map(len, queues), default=0)):
        for run_index, rows in enumerate(queues):
            if place < len(rows) and tokens + len(rows[place]["tokens"]) <= MOST_TOKENS:
                tokens += len(rows[place]["tokens"])
                selected.append({"run": run_index, **rows[place]})
    return {"runs": names, "rows": selected}, found


def _read_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row of `credit.jsonl` with its numbers rounded, after a check that its lists have one length."""
    numbers = (*QUANTITIES, *(name for name in PROBABILITIES if name in row), "reward")
    lists = ("tokens", "action", *numbers)
    lengths = {name: len(row[name]) if isinstance(row.get(name), list) else None for name in lists}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise InputError(f"{where}: expected lists of one length, met {lengths}; {AGAIN}")
    return {
        **{name: [_round(value) for value in row[name]] for name in numbers},
        **{name: str(portable(row.get(name)) or "") for name in ("kind", "side", "source", "prompt_id")},
        **{name: _round(row.get(name)) for name in ("return", "beta")},
        "tokens": [str(token) for token in row["tokens"]],
        "action": [bool(is_action) for is_action in row["action"]],
    }


def _round(value: Any) -> float | None:
    number = as_number(value)
    return None if number is None else float(f"{number:.4g}")
