"""hh-rlhf (Bai et al. 2022, arXiv 2204.05862) holds preference pairs of dialogues, each written as one text.

Both texts of a row begin with the same prompt and differ in the last answer. The prompt ends at the last
"\\n\\nAssistant:" at or before their first difference. To cut each text at its own last marker would give two different
prompts wherever an answer contains a marker itself.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from shiqrun.data.chats import prompt_name
from shiqrun.data.columns import UnreadColumns
from shiqrun.data.drops import drop
from shiqrun.data.files import SUFFIXES, data_files, read_rows
from shiqrun.data.pair_rewards import announce_pair_rewards, check_pair_rewards
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example, Message
from shiqrun.util.hub import expect_reachable

HUB_ID = "Anthropic/hh-rlhf"
FOLDERS = {"harmless": ["harmless-base"], "helpful": ["helpful-base"], "both": ["harmless-base", "helpful-base"]}
COLUMNS = frozenset(("chosen", "rejected"))
ANSWER = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}


class HH(Source):
    """An `HH` data set yields the preference pairs of hh-rlhf: the completions [chosen, rejected] of each prompt.

    Args:
        path: a file, or a directory (the Hub's layout, or files directly in it); None reads the Hub.
        subset: harmless-base, helpful-base or both.
        split: of the source; a local file is read whatever it says.
        pair_rewards: rewards of chosen and rejected, reward units; None leaves pairs without rewards.
        on_embedded_marker: what to do with a pair whose answer contains a further "\\n\\nHuman:" or "\\n\\nAssistant:";
            if the pair is kept, such an answer stays one turn of the policy.

    Raises:
        InputError: `pair_rewards` are not two finite numbers.
    """

    splits: tuple[str, ...] = ("train",)

    def __init__(
        self,
        *,
        path: str | None,
        subset: Literal["harmless", "helpful", "both"],
        split: str,
        pair_rewards: list[float] | None,
        on_embedded_marker: Literal["drop", "keep", "error"],
    ) -> None:
        self.path, self.folders, self.split = path, FOLDERS[subset], split
        self.pair_rewards = check_pair_rewards(pair_rewards)
        self.on_embedded_marker = on_embedded_marker
        self._announced = False
        self._unread = UnreadColumns()

    def load(self, split: str) -> Iterator[Example]:
        """Yield the preference pairs of the split that `data.split` names, in file order; `split` must be "train".

        Raises:
            InputError: no network, unreadable file, missing column, or an embedded marker where that is an error.
        """
        self.dropped.clear()
        if self.pair_rewards is not None and not self._announced:
            announce_pair_rewards(self.pair_rewards)
            self._announced = True
        rows = _hub_rows(self.folders, self.split) if self.path is None else self._local_rows(Path(self.path))
        for place, row in rows:
            self._unread.see(row, COLUMNS, place)
            self._unread.tell()
            chosen, rejected = _text(row, "chosen", place), _text(row, "rejected", place)
            example = self._example(chosen, rejected, place)
            if isinstance(example, str):
                drop(self.dropped, example, place, rejected)
            else:
                yield example

    def files(self) -> list[Path] | None:
        """Return the local files; None for the Hub's, and for a class of the user's own. See `Source`."""
        if self.path is None or type(self) is not HH:
            return None
        return [file for place in self._places(Path(self.path).expanduser()) for file in data_files(place)]

    def _local_rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        for place in self._places(path.expanduser()):
            yield from read_rows(place)

    def _places(self, path: Path) -> list[Path]:
        """Return the files or directories of the subsets at a path."""
        there = [name for name in FOLDERS["both"] if os.path.isdir(path / name)]
        missing = [name for name in self.folders if name not in there]
        if there and missing:
            raise InputError(f"{path}: no directory {missing[0]} in it, but {there[0]}; set data.subset")
        folders = [path / name for name in self.folders] if there else [path]
        return [_file_of(folder, self.split) if os.path.isdir(folder) else folder for folder in folders]

    def _example(self, chosen: str, rejected: str, place: str) -> Example | str:
        """Return the example of a chosen and a rejected dialogue, or the reason for which the pair is dropped."""
        cut = _shared(chosen, rejected).rfind(ANSWER)
        prompt = _messages(chosen[: max(cut, 0)])
        if not prompt or prompt[-1]["role"] != "user":
            return "prompt is not '\\n\\nHuman: ...' up to the answer"
        answers = [text[cut + len(ANSWER) :].strip() for text in (chosen, rejected)]
        if not all(answers):
            return "empty completion"
        if self.on_embedded_marker != "keep" and any(TURN.search(answer) for answer in answers):
            if self.on_embedded_marker == "drop":
                return "answer contains a further turn"
            raise InputError(f"{place}: an answer contains a further turn; set data.on_embedded_marker to drop or keep")
        return Example(
            messages=prompt,
            completions=[[{"role": "assistant", "content": answer}] for answer in answers],
            rewards=self.pair_rewards,
            prompt_id=prompt_name(prompt),
            source=place,
            alone=True,
        )


def _shared(one: str, other: str) -> str:
    """Return the longest common beginning of two texts."""
    end = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:end]


def _messages(text: str) -> list[Message]:
    """Return the turns of a dialogue, consecutive turns of one role merged; [] if it does not begin with a marker."""
    before, *parts = TURN.split(text)
    merged: list[Message] = []
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        if merged and merged[-1]["role"] == ROLE[name]:
            merged[-1]["content"] += "\n\n" + content.strip()
        else:
            merged.append({"role": ROLE[name], "content": content.strip()})
    return [] if before.strip() else merged


def _text(row: dict[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        found = f"a {type(value).__name__}" if column in row else f"columns {', '.join(row) or '(none)'}"
        raise InputError(
            f"{place}: expected a text in column '{column}', found {found}; "
            "data=hh reads the texts of hh-rlhf, data=jsonl reads chat lists and your own columns"
        )
    return value


def _file_of(folder: Path, split: str) -> Path:
    """Return the folder's file of a split if one is named after it, else the folder with all its files."""
    named = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
    if not named and folder.name in FOLDERS["both"]:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise InputError(f"{folder}: no file of split '{split}'; there is {there}; set data.split")
    return named[0] if named else folder


def _hub_rows(folders: list[str], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets  # late: it takes a second, and local files do without

    expect_reachable(HUB_ID, "data.path")
    for folder in folders:
        try:
            rows = datasets.load_dataset(HUB_ID, data_dir=folder, split=split)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{HUB_ID}, {folder}, data.split={split}: {error}; without a network pass data.path=FILE_OR_DIRECTORY"
            ) from None
        for number, row in enumerate(rows, start=1):
            yield f"{HUB_ID}/{folder}/{split} row {number}", row
