"""Which completions the page carries, and how: each text once, a row of numbers a completion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.report.run_files import as_number, read_lines
from shiqrun.report.run_records import Run

MOST_ROWS, MOST_CHARACTERS = 4000, 8_000_000
"""What the page carries at most; a browser opens that much from disk without waiting."""

TEXTS = ("prompt", "completion", "reference_completion")
OF_EVALUATION = {"ref_completion": "reference_completion", "ref_reward": "reference_reward", "log_ratio": "kl"}
"""Columns of `completions.parquet` and what `samples.jsonl` calls them."""


@dataclass
class Carried:
    """The completions on the page.

    Attributes:
        runs: label of each run that has some.
        texts: every prompt and completion once.
        rows: run, step (or name of an evaluation), prompt, completion, reference's completion (numbers into texts, -1
            for none), reward, reference's reward, KL, tokens, whether it ended.
        found: completions there were to carry.
    """

    runs: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    found: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)
    _characters: int = 0

    def add(self, run: int, step: int | str, row: dict[str, Any]) -> None:
        """Carries a row of `samples.jsonl`, if there is room."""
        self.found += 1
        new = {t for t in (row.get(k) for k in TEXTS) if isinstance(t, str) and t not in self._numbers}
        size = sum(map(len, new))
        if len(self.rows) >= MOST_ROWS or self._characters + size > MOST_CHARACTERS:
            return
        self._characters += size
        numbers = [as_number(row.get(key)) for key in ("reward", "reference_reward", "kl")]
        tokens = as_number(row.get("tokens"))
        self.rows.append(
            [run, step, *(self._text(row.get(key)) for key in TEXTS)]
            + [None if n is None else float(f"{n:.5g}") for n in numbers]
            + [None if tokens is None else int(tokens), row.get("ended")]
        )

    def _text(self, text: Any) -> int:
        if not isinstance(text, str):
            return -1
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]

    def payload(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"runs": self.runs, "texts": self.texts, "rows": self.rows}


def carried(runs: Sequence[Run], labels: Sequence[str]) -> Carried:
    """The completions of the last step of each run, in turn while there is room; of a single run, of all its steps."""
    carrying = Carried()
    last: list[tuple[int, Iterator[tuple[int | str, dict[str, Any]]]]] = []
    for run, label in zip(runs, labels, strict=True):
        rows = list(read_lines(run.directory / "samples.jsonl"))
        for row in rows:
            row["step"] = int(as_number(row.get("step")) or 0)
        final = max((row["step"] for row in rows), default=0)
        kept = [row for row in rows if len(runs) == 1 or row["step"] == final]
        shown = [(row["step"], row) for row in sorted(kept, key=lambda row: -row["step"])] + _evaluated(run.directory)
        if shown:
            carrying.runs.append(label)
            last.append((len(carrying.runs) - 1, iter(shown)))
    while last:  # a row of each run in turn, so that a cap cuts all alike
        remaining = []
        for run_number, left in last:
            if (item := next(left, None)) is not None:
                carrying.add(run_number, *item)
                remaining.append((run_number, left))
        last = remaining
    return carrying


def evaluations(directory: Path) -> list[Path]:
    """The directories of `shiqrun eval run=...` under a run, oldest first."""
    return sorted(path.parent for path in (directory / "eval").glob("*/eval.json"))


def _evaluated(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    """The completions of the latest evaluation of a run."""
    files = [path / "completions.parquet" for path in evaluations(directory)[-1:]]
    if not files or not files[0].exists():
        return []
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(files[0]).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{files[0]}: no Parquet ({error}); run `shiqrun eval` again or remove its folder") from None
    for row in rows:
        row |= {new: row.get(old) for old, new in OF_EVALUATION.items()} | {"tokens": len(row.get("token_ids") or ())}
    return [(f"eval {files[0].parent.name}", row) for row in rows]
