"""`ProblemRows` reads the rows of a data set of problems by split, from files or from the Hugging Face Hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiqrun.data.chats import prompt_name
from shiqrun.data.files import SUFFIXES, Row, read_rows
from shiqrun.errors import InputError
from shiqrun.types import Example, Message
from shiqrun.util.hub import expect_reachable


@dataclass(frozen=True)
class Hub:
    """A `Hub` says where on the Hugging Face Hub a data set lies: its id, configuration and splits.

    Attributes:
        name: the Hub id.
        config: the configuration that `load_dataset` takes, None for the only one.
        splits: our name of a split -> the Hub's name.
        arrow: whether the data set came with a loading script, which `datasets` no longer runs; then its Arrow or
            Parquet files are read, from one directory a split.
    """

    name: str
    config: str | None
    splits: Mapping[str, str]
    arrow: bool = False


class ProblemRows:
    """A `ProblemRows` reads the rows of a data set of problems by split, from local files or from the Hub.

    Args:
        path: a file, or a directory whose files are named after the Hub's splits (`train.jsonl`, `x_test.parquet`,
            `data/train-00000-of-00001.parquet`; files without such a name all count as train); None reads the Hub.
        hub: where the data set lies on the Hub.
        any_text: as in `read_rows`.

    Attributes:
        splits: ("train", "val") or ("train",).
    """

    def __init__(self, path: str | None, hub: Hub, *, any_text: bool = False) -> None:
        self._path, self._hub = None if path is None else Path(path).expanduser(), hub
        self._files = {} if self._path is None else _files(self._path, hub.splits)
        self._any_text = any_text
        own = hub.splits if path is None else self._files
        self.splits: tuple[str, ...] = ("train", "val") if "val" in own else ("train",)

    def read_split(self, split: str) -> Iterator[tuple[str, Row]]:
        """Yield (place, row) for each row of a split, in file order.

        Raises:
            InputError: no network, an unreadable file, or a row that is no object.
        """
        if self._path is None:
            yield from _hub_rows(self._hub, self._hub.splits[split])
            return
        for file in self._files.get(split, [self._path]):
            yield from read_rows(file, any_text=self._any_text)


def _files(path: Path, names: Mapping[str, str]) -> dict[str, list[Path]]:
    """Return the data files of a directory by the split in their names; {} if no name contains the training split."""
    if not path.is_dir():
        return {}
    folder = path / "data" if (path / "data").is_dir() else path
    there = sorted(f for f in folder.iterdir() if f.name.endswith(SUFFIXES) and f.name[0] != ".")
    named = {
        ours: [f for f in there if re.search(rf"(?:^|[-_.]){theirs}(?=[-_.])", f.name)]
        for ours, theirs in names.items()
    }
    return {ours: files for ours, files in named.items() if files} if named.get("train") else {}


def _hub_rows(hub: Hub, split: str) -> Iterator[tuple[str, Row]]:
    import datasets  # late: it takes a second, and local files do without

    expect_reachable(hub.name, "data.path")
    try:
        load = _downloaded if hub.arrow else datasets.load_dataset
        rows = load(hub.name, hub.config, split=split)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{hub.name}, split {split}: {error}; without a network pass data.path=FILE_OR_DIRECTORY"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{hub.name}/{split} row {number}", row


def _downloaded(name: str, _: str | None, *, split: str) -> Any:
    """Download a split's directory of Arrow or Parquet files and return its rows."""
    import datasets
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=[f"{split}/*"]))
    for kind in ("arrow", "parquet"):
        if files := sorted(map(str, (folder / split).glob(f"*.{kind}"))):
            return datasets.load_dataset(kind, data_files=files, split="train")
    raise InputError(f"{name}: no Arrow or Parquet file in its directory {split}; pass data.path=FILE_OR_DIRECTORY")


def text(row: Row, column: str, place: str, dataset: str) -> str:
    """Return the text in a column of a row.

    Raises:
        InputError: the column is missing or holds no text.
    """
    value = row.get(column)
    if not isinstance(value, str):
        found = f"a {type(value).__name__}" if column in row else f"columns {', '.join(row) or '(none)'}"
        raise InputError(f"{place}: expected a text in column '{column}', found {found}; data={dataset} reads its rows")
    return value


def is_readable(text: str) -> bool:
    """Return whether a text is not empty and can be encoded as UTF-8."""
    try:
        return bool(text.strip().encode())
    except UnicodeEncodeError:
        return False


def check_rewards(rewards: Sequence[float]) -> tuple[float, float]:
    """Return the rewards of (a right, a wrong) completion after checking that right is above wrong.

    Raises:
        InputError: right is not above wrong.
    """
    right, wrong = rewards
    if not right > wrong:
        raise InputError(f"data.rewards={list(rewards)}: expected [right, wrong] with right above wrong, as [0, -1]")
    return float(right), float(wrong)


def example(
    question: str,
    logged: Sequence[tuple[str, float]],
    answer: Any,
    place: str,
    columns: Mapping[str, Any] | None = None,
) -> Example:
    """Return the `Example` of a problem with its logged completions, each given as (text, reward)."""
    messages: list[Message] = [{"role": "user", "content": question}]
    return Example(
        messages=messages,
        completions=[[{"role": "assistant", "content": solution}] for solution, _ in logged],
        rewards=[reward for _, reward in logged],
        prompt_id=prompt_name(messages),
        answer=answer,
        source=place,
        columns=columns or {},
    )
