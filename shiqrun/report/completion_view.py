"""`select_completions` selects the sampled completions that the report's browser shows beside the reference's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shiqrun.errors import InputError
from shiqrun.report.number_text import format_plus_minus
from shiqrun.report.plots import page_colour
from shiqrun.report.run_files import AGAIN, as_number, read_lines
from shiqrun.report.run_records import RunRecord
from shiqrun.report.seed_groups import KL, REWARD, SeedGroup

MOST_ROWS, MOST_CHARACTERS = 4000, 8_000_000
"""The largest number of completions on the page and of characters in them; a browser opens that without waiting."""

TEXTS = ("prompt", "completion", "reference_completion")
EVALUATION_COLUMNS = {"ref_completion": "reference_completion", "ref_reward": "reference_reward", "log_ratio": "kl"}
"""Columns of `completions.parquet` and their names in `samples.jsonl`."""
LOG_RATIO = 7
"""The place of an answer's log-ratio in a row of the page."""
Labelled = tuple[int | str, dict[str, Any]]
"""A completion behind the training step, or the name of the evaluation, at which it was sampled."""


@dataclass
class SelectedCompletions:
    """The selected completions have the compact form that completions.js reads: each text once, and rows of numbers.

    Attributes:
        runs: label of each run that has completions.
        places: number of each of these runs among those that were given.
        texts: every prompt and completion once.
        rows: run, step (or name of an evaluation), prompt, completion, reference's completion (indices into texts, -1
            for none), reward, reference's reward, KL in nats, tokens, whether it ended with EOS.
        found: the number of completions before the limits of the page.
    """

    runs: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    found: int = 0
    _text_index: dict[str, int] = field(default_factory=dict)
    _characters: int = 0

    def add(self, run: int, step: int | str, row: dict[str, Any]) -> None:
        """Add a row of `samples.jsonl`, unless the page is full."""
        self.found += 1
        new = {t for t in (row.get(k) for k in TEXTS) if isinstance(t, str) and t not in self._text_index}
        size = sum(map(len, new))
        if len(self.rows) >= MOST_ROWS or self._characters + size > MOST_CHARACTERS:
            return
        self._characters += size
        numbers = [as_number(row.get(key)) for key in ("reward", "reference_reward", "kl")]
        tokens = as_number(row.get("tokens"))
        self.rows.append(
            [run, step, *(self._index_of(row.get(key)) for key in TEXTS)]
            + [None if n is None else float(f"{n:.5g}") for n in numbers]
            + [None if tokens is None else int(tokens), row.get("ended")]
        )

    def _index_of(self, text: Any) -> int:
        if not isinstance(text, str):
            return -1
        if text not in self._text_index:
            self._text_index[text] = len(self.texts)
            self.texts.append(text)
        return self._text_index[text]

    def script_data(self) -> dict[str, Any]:
        """Return the selected completions as JSON values, as completions.js reads them."""
        return {"runs": self.runs, "texts": self.texts, "rows": self.rows}


def select_completions(runs: Sequence[RunRecord], labels: Sequence[str]) -> SelectedCompletions:
    """Select the completions of each run's last step and latest evaluation; of a single run, those of all its steps.

    Where the page has no room for all, every run gets the same share.
    """
    selected = SelectedCompletions()
    queues: list[tuple[int, Iterator[Labelled]]] = []
    for place, (run, label) in enumerate(zip(runs, labels, strict=True)):
        rows = _training_completions(run.directory, all_steps=len(runs) == 1) + _evaluation_completions(run.directory)
        if rows:
            selected.runs.append(label)
            selected.places.append(place)
            queues.append((len(selected.runs) - 1, iter(rows)))
    while queues:  # a row of each run in turn, so that the limits cut all runs alike
        remaining = []
        for run_index, queue in queues:
            if (item := next(queue, None)) is not None:
                selected.add(run_index, *item)
                remaining.append((run_index, queue))
        queues = remaining
    return selected


def compared_method(group: SeedGroup, style: Mapping[str, Any]) -> dict[str, str]:
    """Return the head of a method's answers beside those of others: name with beta, colour, mean reward and KL."""
    beta = "" if group.beta is None else f" β={group.beta:g}"
    means = [
        f"{title} {' ± '.join(filter(None, format_plus_minus(e.mean, e.half)))}{unit}"
        for metric, title, unit in ((REWARD, "mean reward", ""), (KL, "KL", " nats"))
        if (e := group.final(metric))
    ]
    return {"name": group.method + beta, "colour": page_colour(style["color"]), "small": ", ".join(means)}


def _training_completions(directory: Path, *, all_steps: bool) -> list[Labelled]:
    """Return the completions of `samples.jsonl`, those of the last step first.

    Raises:
        InputError: a row is no completion.
    """
    path, rows = directory / "samples.jsonl", list[Labelled]()
    for number, row in enumerate(read_lines(path), 1):
        step = as_number(row.get("step"))
        if step is None or not isinstance(row.get("completion"), str):
            raise InputError(f"{path} line {number}: no completion at a step; {AGAIN}")
        rows.append((int(step), row))
    last = max((int(step) for step, _ in rows), default=0)
    return [*sorted((r for r in rows if all_steps or r[0] == last), key=lambda r: -int(r[0]))]


def evaluation_directories(run: Path) -> list[Path]:
    """Return the directories that `shiqrun eval run=...` made under a run directory, oldest first."""
    return sorted(path.parent for path in (run / "eval").glob("*/eval.json"))


def _evaluation_completions(directory: Path) -> list[Labelled]:
    """Return the completions of the latest evaluation of a run.

    Raises:
        InputError: `completions.parquet` cannot be read.
    """
    files = [path / "completions.parquet" for path in evaluation_directories(directory)[-1:]]
    if not files or not files[0].exists():
        return []
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(files[0]).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{files[0]}: no Parquet ({error}); run `shiqrun eval` again or remove its folder") from None
    for row in rows:
        row |= {new: row.get(old) for old, new in EVALUATION_COLUMNS.items()}
        row["tokens"] = len(row.get("token_ids") or ())
    return [(f"eval {files[0].parent.name}", row) for row in rows]
