"""`data=jsonl` reads the user's own rows with the usual columns (TRL, UltraFeedback, chats), from files or the Hub.

A row is one of

    prompt, completion, reward | rewards         one trajectory (rewards: one number per assistant turn or per token)
    prompt, completions, rewards                 several completions of one prompt, one entry each
    [prompt,] chosen, rejected [, score_chosen, score_rejected]
    messages, reward | rewards                   a chat; its prompt ends before the first assistant turn

Instead of `reward`, a row with one completion may have a `label`, true or false (KTO). A row may also hold `answer` or
`tests` for verifiers (of both, `tests` is read), or `answer_json`, the same as a JSON text, for Parquet, where all rows
have one type; `prompt_id` (by default a hash of the prompt); and `tools`, a list of function schemas, or its JSON text,
for the chat template.
A string prompt is one user message, a string completion one assistant message. A chat that begins with the prompt's
messages is cut behind them; and where the first string completion of a file begins with the text of its prompt, all do.
A row with the columns of `data/token_columns.py` holds its completions as they were sampled, in token ids.
`data/columns.py` holds the names of the columns; those that nothing reads are named in the log.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shiqrun.data.chats import drop_reason, trained
from shiqrun.data.columns import NAMES, TEXTS, VALUES, ColumnName, UnreadColumns
from shiqrun.data.csv_rows import CsvRow, typed_cells
from shiqrun.data.drops import drop
from shiqrun.data.files import data_files, read_rows
from shiqrun.data.hub_files import hub_files, is_hub_id
from shiqrun.data.own_columns import OwnColumns
from shiqrun.data.pair_rewards import (
    announce_label_rewards,
    announce_pair_rewards,
    check_label_rewards,
    check_pair_rewards,
)
from shiqrun.data.read_as import RowsRead
from shiqrun.data.row_parts import Parts, Row
from shiqrun.data.source import Source
from shiqrun.data.token_columns import SEVERAL, SINGLE, SPANS
from shiqrun.errors import InputError
from shiqrun.types import Example

log = logging.getLogger("shiqrun")
KNOWN = frozenset(NAMES)
KNOWN_AND_TOKENS = KNOWN | {*SINGLE, *SEVERAL, SPANS}
"""Columns that are no further columns of an example, without and with tokens."""


class Jsonl(Source):
    """A `Jsonl` data set yields one example per row of JSON-lines, Parquet, Arrow, CSV or TSV files, or of the Hub.

    Args:
        path: a file, a directory of files or of `save_to_disk`, or ORG/NAME on the Hugging Face Hub.
        val_path, test_path: the same for the validation and the test split; None takes a share of the prompts.
        split, val_split: names of the splits on the Hub; `val_split` without `val_path` is of the same data set.
        config, revision: of the data set on the Hub.
        pair_rewards: rewards of chosen and rejected in pairs without scores, reward units; None gives them none.
        tools: whether the chat template gets the tool schemas of the rows.
        label_rewards: rewards of true and false in the column `label` of rows without rewards, reward units; None gives
            them none.
        columns: the file's own columns by the names that they have here; None for the same name.

    Raises:
        InputError: `pair_rewards` or `label_rewards` are not two finite numbers.
    """

    def __init__(
        self,
        *,
        path: str,
        val_path: str | None,
        pair_rewards: list[float] | None,
        split: str = "train",
        val_split: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        tools: bool = True,
        label_rewards: list[float] | None = None,
        columns: dict[ColumnName, str | None] | None = None,
        test_path: str | None = None,
    ) -> None:
        val_path = path if val_path is None and val_split is not None and is_hub_id(path) else val_path
        self.paths = {"train": path} if val_path is None else {"train": path, "val": val_path}
        self.paths |= {} if test_path is None else {"test": test_path}
        self._hub = {"train": split, "val": val_split or split, "test": split}, config, revision
        for name, given in (("val_split", val_split), ("config", config), ("revision", revision)):
            if given is not None and not any(map(is_hub_id, self.paths.values())):
                raise InputError(f"data.{name}={given}: only for data.path=ORG/NAME on the Hub; {path} is local")
        self.splits = tuple(self.paths)
        self.tools = tools
        self.columns = {str(name): own for name, own in (columns or {}).items() if own is not None and own != name}
        self.pair_rewards, self.label_rewards = check_pair_rewards(pair_rewards), check_label_rewards(label_rewards)
        self._rewards_from: tuple[str | None, str] | None = None
        self._repeats: tuple[bool, str] | None = None
        self._announced = self._warned = False
        self._unread, self._told = UnreadColumns(), set[str]()

    def files(self) -> list[Path] | None:
        """Return the files that are trained or validated on; see `Source`."""
        if type(self) is not Jsonl:  # a class of the user's own may read more
            return None
        return [file for split in self.paths if split != "test" for file in self._files(split)]

    def _files(self, split: str) -> list[Path]:
        path, (names, config, revision) = self.paths[split], self._hub
        if is_hub_id(path):
            return hub_files(path, split=names[split], config=config, revision=revision)
        return data_files(path)

    def _rows(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (place, columns) of each row of a split; the place of a row of the Hub is its number in the split."""
        path, number, own = self.paths[split], 0, OwnColumns(self.columns)
        for file in self._files(split):
            for place, columns in read_rows(file):
                number += 1
                columns = own.rename(columns, place)
                named = f"{path}, {self._hub[0][split]} row {number}" if is_hub_id(path) else place
                yield named, typed_cells(columns, TEXTS, VALUES) if isinstance(columns, CsvRow) else columns
        own.expect_all(path)

    def load(self, split: str) -> Iterator[Example]:
        """Yield the examples of a split, in file order.

        Raises:
            InputError: unreadable file, broken row, missing column or reward that is no finite number.
        """
        self.dropped.clear()
        count = RowsRead(self.columns, tools=self.tools)
        try:
            for number, (place, columns) in enumerate(self._rows(split)):
                row = Row(columns, place, self.columns)
                row.expect_form(after=count.forms())
                self._unread.see(columns, row.read(labels=self.label_rewards is not None), place, NAMES)
                if not number:
                    self._unread.tell()
                parts = self._parts(row)
                count.see(row.form, row.tools(parts.prompt), parts.rewards, parts.rewards_from)
                example = self._example(row, parts)
                if example is not None:
                    yield example
        except InputError:
            self._told.add(split)
            raise
        finally:
            self._unread.tell()
            if split not in self._told:
                count.tell(self.paths[split])
                self._told.add(split)

    def _parts(self, row: Row) -> Parts:
        """Return what was read of a row; pairs without scores, and labels, with the rewards that the settings say."""
        parts = (row.behind_prompt() if self._repeats_prompt(row) else row).parts()
        if row.form == "pair" and parts.rewards is None and self.pair_rewards is not None:
            if not self._announced:
                announce_pair_rewards(self.pair_rewards)
                self._announced = True
            parts = parts._replace(rewards=[*self.pair_rewards], rewards_from="data.pair_rewards")
        label = row.label()
        if label is not None and self.label_rewards is not None:
            if not self._announced:
                announce_label_rewards(self.label_rewards)
                self._announced = True
            reward = self.label_rewards[0 if label else 1]
            parts = parts._replace(rewards=[reward], rewards_from="data.label_rewards")
        self._expect_same_origin(parts.rewards_from, row.place)
        return parts

    def _repeats_prompt(self, row: Row) -> bool:
        """Return whether the row's completions are to be cut behind the text of its prompt: whether the first row's do.

        An answer may begin with the words of its prompt by chance, so that one row alone does not tell.

        Raises:
            InputError: the first row's completions repeat their prompt, and this row's do not.
        """
        now = row.repeats_prompt()
        if now is None:
            return False
        if self._repeats is None:
            self._repeats = now, row.place
            if now:
                log.info(f"{row.place}: completions repeat the text of their prompt, and are cut behind it")
        before, first = self._repeats
        if before and not now:
            raise InputError(
                f"{row.place}: the completion does not repeat the text of its prompt, but that of {first} does; give "
                "all rows completions alone (as lists of messages, an answer may begin with the prompt's words)"
            )
        if now and not before and not self._warned:
            log.warning(
                f"{row.place}: the completion begins with the text of its prompt; that stays part of the answer, "
                f"since the completion of {first} does not"
            )
            self._warned = True
        return before

    def _expect_same_origin(self, rewards_from: str | None, place: str) -> None:
        """Check that the rewards of all rows come from the same columns, since others would not be comparable."""
        if self._rewards_from is None:
            self._rewards_from = (rewards_from, place)
        before, where = self._rewards_from
        if rewards_from != before:
            raise InputError(
                f"{place}: rewards come from {rewards_from or 'nowhere'}, but from {before or 'nowhere'} in {where}; "
                "give all rows the same reward column, or none of them any"
            )

    def _example(self, row: Row, parts: Parts) -> Example | None:
        """Return the example of a row, or None; completions that cannot be trained on are dropped and counted."""
        sampled = row.sampled(len(parts.completions))
        # What was sampled is trained on as it was sampled, without words too.
        reasons = [None if sampled and trained(c) else drop_reason(c) for c in parts.completions]
        bad = [(reason, said) for reason, said in zip(reasons, parts.completions, strict=True) if reason is not None]
        if not parts.prompt:
            drop(self.dropped, "no prompt", row.place, parts.completions[0])
            return None
        for reason, said in bad[:1] if row.form == "pair" else bad:  # one completion is no pair
            drop(self.dropped, reason, row.place, said)
        if bad and row.form == "pair":
            return None
        kept = [i for i, reason in enumerate(reasons) if reason is None]
        if not kept:
            return None
        kept_as = ("tests", "answer") if row.has("tests") else ("tests",)  # `answer` beside `tests` is like any other
        known = KNOWN_AND_TOKENS if sampled else KNOWN
        unread = {} if self.tools or not (given := row.tools(parts.prompt)) else {"tools": given}
        prompt = row.with_tools(parts.prompt, read=self.tools)
        return Example(
            messages=prompt,
            completions=[parts.completions[i] for i in kept],
            rewards=None if parts.rewards is None else [parts.rewards[i] for i in kept],
            prompt_id=row.prompt_id(prompt),
            answer=row.answer(),
            source=row.place,
            alone=row.has("chosen"),
            columns=unread | {k: v for k, v in row.columns.items() if k in kept_as or k not in known},
            sampled=sampled and [sampled[i] for i in kept],
        )


class GivenRows(Jsonl):
    """A `GivenRows` data set yields the examples of rows that are in memory, in the columns of `data=jsonl`.

    Args:
        rows: columns of each row by name; messages name them "row 0", "row 1", ...
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(path="rows", val_path=None, pair_rewards=None)
        self._given = rows

    def _rows(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(self._given):
            if not isinstance(row, Mapping):
                raise InputError(f"row {number}: expected columns by name, found a {type(row).__name__}")
            yield f"row {number}", dict(row)
