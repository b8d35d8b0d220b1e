"""UltraFeedback (Cui et al. 2023, arXiv 2310.01377) holds completions of 64,000 instructions, scored by GPT-4.

It is read in two forms:

    binarized   HuggingFaceH4/ultrafeedback_binarized: a pair a prompt, `chosen` with the highest `overall_score`,
                `rejected` one of the other three at random (so ties exist), with both scores; train and test splits
    scored      openbmb/UltraFeedback: four completions a prompt with all their ratings; one split

In the original, each of the four completions has a `custom_system_prompt` of its own, so that they differ on purpose.
The system prompt is left out, as in the binarized form: the policy completes the bare instruction, and no loss here
asks which policy made a completion. The original holds TruthfulQA's questions (`source` truthful_qa), the binarized
form does not.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from shiqrun.data.chats import as_messages, drop_reason, prompt_name
from shiqrun.data.drops import drop
from shiqrun.data.files import SUFFIXES, read_rows
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example, Message
from shiqrun.util.hub import expect_reachable

Variant = Literal["binarized", "scored"]
Score = Literal["fine_grained", "overall"]
PlacedRows = Iterator[tuple[str, dict[str, Any]]]

HUB = {
    "binarized": ("HuggingFaceH4/ultrafeedback_binarized", "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"),
    "scored": ("openbmb/UltraFeedback", "40b436560ca83a8dba36114c22ab3c66e43f6d5e"),
}
"""Hub id and the commit that is read unless another is asked for: 61,135 + 2,000 rows, and 63,967 with the corrected
`overall_score`. An older commit of the first (292c163, 61,966 rows) ordered by the mean rating."""
HUB_SPLITS = {"binarized": {"train": "train_prefs", "val": "test_prefs"}, "scored": {"train": "train"}}
UNKNOWN = (None, "", "N/A")


class UltraFeedback(Source):
    """An `UltraFeedback` data set yields pairs or groups of four completions, with their scores as rewards.

    Args:
        path: a file, or a directory (the Hub's layout, or files directly in it); None reads the Hub.
        variant: binarized (pairs) or scored (four completions a prompt); a local file must be of that form.
        score: of `variant=scored`: the mean of the ratings (1 to 5) or `overall_score` (1 to 10).
        revision: commit or branch on the Hub; None for the one in HUB.
    """

    def __init__(self, *, path: str | None, variant: Variant, score: Score, revision: str | None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.variant, self.score, self.revision = variant, score, revision
        self._files = self._local_files()
        own = HUB_SPLITS[variant] if self.path is None else self._files
        self.splits: tuple[str, ...] = ("train", "val") if "val" in own else ("train",)

    def load(self, split: str) -> Iterator[Example]:
        """Yield the examples of a split, in file order.

        Raises:
            InputError: no network, unreadable file, a row of another form, or the wrong scores of the first release.
        """
        self.dropped.clear()
        for place, row in self._rows(split):
            made = self._pair(row, place) if self.variant == "binarized" else self._group(row, place)
            if isinstance(made, str):
                drop(self.dropped, made, place)
            elif not made.messages[-1]["content"].strip():
                drop(self.dropped, "no prompt", place, made.completions[0])
            else:
                yield made

    def _local_files(self) -> dict[str, list[Path]]:
        """Return the files of each split where `path` is a directory laid out as the pairs are on the Hub; else {}."""
        if self.path is None or self.variant != "binarized" or not self.path.is_dir():
            return {}
        folder = self.path / "data" if (self.path / "data").is_dir() else self.path
        found = {
            ours: sorted(f for f in folder.glob(f"{theirs}*") if f.name.endswith(SUFFIXES))
            for ours, theirs in HUB_SPLITS["binarized"].items()
        }
        return {split: files for split, files in found.items() if files} if found["train"] else {}

    def _rows(self, split: str) -> PlacedRows:
        if self.path is None:
            yield from _hub_rows(*HUB[self.variant], HUB_SPLITS[self.variant][split], self.revision)
            return
        for file in self._files.get(split, [self.path]):
            yield from read_rows(file)

    def _pair(self, row: dict[str, Any], place: str) -> Example | str:
        """Return the preference pair of a row, or the reason for which the row is dropped."""
        sides = [_messages(row, column, place) for column in ("chosen", "rejected")]
        prompt = sides[0][:-1]  # with a system message where there is one
        if any(side[:-1] != prompt for side in sides):
            return "chosen and rejected answer different prompts"
        completions = [side[-1:] for side in sides]
        found = [_number(row.get(c), f"{place}: column '{c}'") for c in ("score_chosen", "score_rejected")]
        scores = [score for score in found if score is not None]
        reason = next(filter(None, map(drop_reason, completions)), None)
        if reason or len(scores) < 2:
            return reason or "no score"
        return Example(
            messages=prompt,
            completions=completions,
            rewards=scores,
            prompt_id=prompt_name(prompt),
            source=place,
            alone=True,
        )

    def _group(self, row: dict[str, Any], place: str) -> Example | str:
        """Return the example of a prompt with its scored completions, or the reason for which the row is dropped."""
        prompt = as_messages(_need(row, "instruction", str, place), "user", place)
        kept: list[tuple[Sequence[Message], float]] = []
        for number, answer in enumerate(_need(row, "completions", list, place), 1):
            where = f"{place}, completion {number}"
            if not isinstance(answer, dict):
                raise InputError(f"{where}: expected an object with response and scores, found {answer!r:.40}")
            turn = as_messages(_need(answer, "response", str, where), "assistant", where)
            score, reason = _score(answer, self.score, where), drop_reason(turn)
            if reason or score is None:
                drop(self.dropped, reason or "no score", where, turn)
            else:
                kept.append((turn, score))
        if not kept:
            return "no completion with text and score"
        return Example(
            messages=prompt,
            completions=[turn for turn, _ in kept],
            rewards=[score for _, score in kept],
            prompt_id=prompt_name(prompt),
            source=place,
        )


def _messages(row: dict[str, Any], column: str, place: str) -> list[Message]:
    chat = as_messages(_need(row, column, list, place), "user", f"{place}: column '{column}'")
    if len(chat) < 2 or chat[-1]["role"] != "assistant":
        raise InputError(
            f"{place}: column '{column}' must be a prompt and an assistant's answer, found the roles "
            f"{[m['role'] for m in chat]}"
        )
    return chat


def _need(row: dict[str, Any], column: str, kind: type, place: str) -> Any:
    value = row.get(column)
    if not isinstance(value, kind):
        found = f"a {type(value).__name__}" if column in row else f"{', '.join(row) or 'nothing'}"
        raise InputError(
            f"{place}: expected a {'text' if kind is str else 'list'} in column '{column}', found {found}; "
            "data.variant=binarized reads pairs (chosen, rejected), data.variant=scored reads instruction and "
            "completions"
        )
    return value


def _number(value: Any, where: str) -> float | None:
    """Return a score, which files hold as a number or as text; None where it is unknown."""
    if value in UNKNOWN or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, N/A or null, found {value!r:.40}")
    return number


def _score(answer: dict[str, Any], which: Score, where: str) -> float | None:
    """Return the score of a completion, which becomes its reward; None where it is unknown.

    Raises:
        InputError: an `overall_score` of 10 beside ratings of at most 2 on average: this is the first release, in
            which the worst completions have the best score.
    """
    fine = _number(answer.get("fine-grained_score"), f"{where}, fine-grained_score")
    fine = _mean_rating(answer, where) if fine is None else fine  # the first release has ratings alone
    if which == "fine_grained":
        return fine
    overall = _number(answer.get("overall_score"), f"{where}, overall_score")
    if overall == 10 and fine is not None and fine <= 2:
        raise InputError(
            f"{where}: overall_score 10, but ratings of {fine:g} on average: these are the wrong scores of the first "
            f"release; take revision {HUB['scored'][1]}, or set data.score=fine_grained"
        )
    return overall


def _mean_rating(answer: dict[str, Any], where: str) -> float | None:
    """Return the mean rating over the aspects; ratings are the texts "1" to "5" or "N/A"."""
    aspects = {k: v for k, v in (answer.get("annotations") or {}).items() if isinstance(v, dict)}
    ratings = [_number(v.get("Rating"), f"{where}, rating of {k}") for k, v in aspects.items()]
    known = [r for r in ratings if r is not None]
    return math.fsum(known) / len(known) if known else None


def _hub_rows(name: str, pinned: str, split: str, revision: str | None) -> PlacedRows:
    import datasets  # late: it takes a second, and local files do without

    expect_reachable(name, "data.path")
    wanted = revision or pinned
    try:
        rows = datasets.load_dataset(name, split=split, revision=wanted)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}, split {split}, data.revision={wanted}: {error}; without a network pass "
            "data.path=FILE_OR_DIRECTORY"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{name}/{split} row {number}", row
