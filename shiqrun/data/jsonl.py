"""`data=jsonl` reads the user's own JSON-lines or Parquet files with the usual columns (TRL, UltraFeedback, chats).

A row is one of

    prompt, completion, reward | rewards         one trajectory (rewards: one number per assistant turn or per token)
    prompt, completions, rewards                 several completions of one prompt, one entry each
    [prompt,] chosen, rejected [, score_chosen, score_rejected]
    messages, reward | rewards                   a chat; its prompt ends before the first assistant turn

A row may also hold `answer` or `tests` for verifiers (of both, `tests` is read), or `answer_json`, the same as a JSON
text, for Parquet, where all rows have one type; and `prompt_id` (by default a hash of the prompt).
A string prompt is one user message, a string completion one assistant message. A completion that repeats the prompt is
cut behind it.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from shiqrun.data.chats import as_messages, drop_reason, prompt_name, shared_prompt, without_prompt
from shiqrun.data.files import read_rows
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.types import Example, Message

log = logging.getLogger("shiqrun")

Reward = float | list[float]

LARGEST_REWARD = 1e15
READ = {"prompt", "completion", "completions", "chosen", "rejected", "messages", "reward", "rewards", "score_chosen"}
READ |= {"score_rejected", "answer", "answer_json", "prompt_id"}
"""The columns that have a meaning here; all others go into `Example.columns`."""


class Jsonl(Source):
    """A `Jsonl` data set yields one example per row of `.jsonl[.gz]`, `.json[.gz]` (one object a line) or Parquet.

    Args:
        path: a file, or a directory of files.
        val_path: file or directory of the validation split, or None to hold out a share of the prompts.
        pair_rewards: rewards of chosen and rejected in pairs without scores, reward units; None gives them none.

    Raises:
        InputError: `pair_rewards` are not two finite numbers.
    """

    def __init__(self, *, path: str, val_path: str | None, pair_rewards: list[float] | None) -> None:
        self.paths = {"train": path} if val_path is None else {"train": path, "val": val_path}
        self.splits = tuple(self.paths)
        self.pair_rewards = check_pair_rewards(pair_rewards)
        self._rewards_from: tuple[str | None, str] | None = None
        self._announced = False

    def load(self, split: str) -> Iterator[Example]:
        """Yield the examples of a split, in file order.

        Raises:
            InputError: unreadable file, broken row, missing column or reward that is no finite number.
        """
        self.dropped.clear()
        for place, columns in read_rows(self.paths[split]):
            row = _Row(columns, place)
            parts = row.parts()
            if row.is_pair and parts.rewards is None and self.pair_rewards is not None:
                if not self._announced:
                    announce_pair_rewards(self.pair_rewards)
                    self._announced = True
                parts = parts._replace(rewards=[*self.pair_rewards], rewards_from="data.pair_rewards")
            self._expect_same_origin(parts.rewards_from, place)
            example = self._example(row, parts)
            if example is not None:
                yield example

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

    def _example(self, row: "_Row", parts: "_Parts") -> Example | None:
        """Return the example of a row, or None; completions that cannot be trained on are dropped and counted."""
        reasons = [drop_reason(c) for c in parts.completions]
        bad = [reason for reason in reasons if reason is not None]
        if not parts.prompt:
            self.dropped["no prompt"] += 1
            return None
        if bad and row.is_pair:
            self.dropped[bad[0]] += 1  # one completion is no pair
            return None
        self.dropped.update(bad)
        kept = [i for i, reason in enumerate(reasons) if reason is None]
        if not kept:
            return None
        tested = row.has("tests")  # then `answer` is a column like any other
        return Example(
            messages=parts.prompt,
            completions=[parts.completions[i] for i in kept],
            rewards=None if parts.rewards is None else [parts.rewards[i] for i in kept],
            prompt_id=row.prompt_id(parts.prompt),
            answer=row.columns["tests"] if tested else row.answer(),
            source=row.place,
            alone=row.has("chosen"),
            columns={k: v for k, v in row.columns.items() if k not in READ or (tested and k == "answer")},
        )


def check_pair_rewards(pair: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the rewards of (chosen, rejected) completions after checking them; None where none are set.

    Raises:
        InputError: not two finite numbers.
    """
    if pair is None:
        return None
    if len(pair) != 2 or not all(math.isfinite(r) for r in pair):
        raise InputError(f"data.pair_rewards={list(pair)}: expected two finite numbers, [chosen, rejected], or null")
    return float(pair[0]), float(pair[1])


def announce_pair_rewards(pair: tuple[float, float]) -> None:
    """Log the rewards that preference pairs without scores get from `data.pair_rewards`."""
    chosen, rejected = pair
    log.info(
        f"pairs without scores: chosen gets reward {chosen:g}, rejected {rejected:g} "
        "(data.pair_rewards; null leaves them without rewards)"
    )


class _Parts(NamedTuple):
    """A `_Parts` holds what was read of a row: prompt, completions, and rewards with the columns they are from."""

    prompt: list[Message]
    completions: list[list[Message]]
    rewards: list[Reward] | None
    rewards_from: str | None


@dataclass(frozen=True)
class _Row:
    """A `_Row` holds the columns of a row and its place in the file; a column that holds null counts as missing."""

    columns: dict[str, Any]
    place: str

    def has(self, column: str) -> bool:
        return self.columns.get(column) is not None

    @property
    def is_pair(self) -> bool:
        return self.has("chosen") or self.has("rejected")

    def parts(self) -> _Parts:
        if self.is_pair:
            return self._pair()
        if self.has("completions"):
            return self._group()
        if self.has("completion"):
            prompt = self._messages("prompt", "user")
            completion = without_prompt(prompt, self._messages("completion", "assistant"))
        elif self.has("messages"):
            chat = self._messages("messages", "user")
            start = next((i for i, m in enumerate(chat) if m["role"] == "assistant"), len(chat))
            prompt, completion = chat[:start], chat[start:]
        else:
            raise self._missing("completion, completions, chosen and rejected, or messages")
        rewards, origin = self._single_reward(completion)
        return _Parts(prompt, [completion], rewards, origin)

    def prompt_id(self, prompt: Sequence[Message]) -> str:
        if not self.has("prompt_id"):
            return prompt_name(prompt)
        value = self.columns["prompt_id"]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self._wrong("prompt_id", "a string or a whole number", value)
        return str(value)

    def answer(self) -> Any:
        if self.has("answer") or not self.has("answer_json"):
            return self.columns.get("answer")
        try:
            return json.loads(self.columns["answer_json"])
        except (TypeError, ValueError, RecursionError):
            raise self._wrong("answer_json", "JSON as a text", self.columns["answer_json"]) from None

    def _pair(self) -> _Parts:
        chosen, rejected = (self._messages(c, "assistant") for c in ("chosen", "rejected"))
        prompt = self._pair_prompt(chosen, rejected)
        completions = [without_prompt(prompt, chosen), without_prompt(prompt, rejected)]
        for column, completion in zip(("chosen", "rejected"), completions, strict=True):
            if prompt and completion and completion[0]["role"] in ("system", "user"):
                raise InputError(
                    f"{self.place}: column '{column}' begins with a {completion[0]['role']} message that is not the "
                    "prompt's; give completions alone, or whole chats that begin with the messages of 'prompt'"
                )
        self._refuse("score_chosen and score_rejected", "reward", "rewards")
        if not (self.has("score_chosen") or self.has("score_rejected")):
            return _Parts(prompt, completions, None, None)
        scores: list[Reward] = [self._number(c, self._need(c)) for c in ("score_chosen", "score_rejected")]
        return _Parts(prompt, completions, scores, "score_chosen and score_rejected")

    def _pair_prompt(self, chosen: list[Message], rejected: list[Message]) -> list[Message]:
        shared = chosen[: shared_prompt(chosen, rejected)]
        if self.has("prompt"):
            prompt = self._messages("prompt", "user")
            # Whole chats may begin with a system message that the column `prompt` leaves out.
            longer = chosen[: len(prompt)] != prompt and shared[-len(prompt) :] == prompt
            return shared if longer else prompt
        if isinstance(self.columns["chosen"], str):
            raise self._missing("prompt (chosen is a string; texts of the form '\\n\\nHuman: ...' are read by data=hh)")
        return shared

    def _group(self) -> _Parts:
        prompt, values = self._messages("prompt", "user"), self.columns["completions"]
        if not isinstance(values, list) or not values:
            raise self._wrong("completions", "a list of one or more completions", values)
        place = f"{self.place}: column 'completions'"
        chats = [as_messages(v, "assistant", f"{place}, completion {i}") for i, v in enumerate(values)]
        chats = [without_prompt(prompt, chat) for chat in chats]
        self._refuse("rewards (a list, one entry a completion)", "reward")
        if not self.has("rewards"):
            return _Parts(prompt, chats, None, None)
        rewards = self.columns["rewards"]
        if not isinstance(rewards, list) or len(rewards) != len(chats):
            raise self._wrong("rewards", f"a list of {len(chats)} numbers, one a completion", rewards)
        entries = [
            self._numbers("rewards", r, chat) if isinstance(r, list) else self._number("rewards", r)
            for r, chat in zip(rewards, chats, strict=True)
        ]
        return _Parts(prompt, chats, entries, "rewards")

    def _single_reward(self, completion: list[Message]) -> tuple[list[Reward] | None, str | None]:
        if self.has("reward"):
            self._refuse("one of reward and rewards", "rewards")
            return [self._number("reward", self.columns["reward"])], "reward"
        if self.has("rewards"):
            return [self._numbers("rewards", self.columns["rewards"], completion)], "rewards"
        return None, None

    def _numbers(self, column: str, values: Any, completion: list[Message]) -> list[float]:
        """Return a checked list of rewards: one per assistant turn or, where there are more, one per token."""
        turns = sum(m["role"] == "assistant" for m in completion)
        if not isinstance(values, list) or len(values) < turns:
            raise self._wrong(column, f"a list of {turns} numbers, one an assistant turn (or one a token)", values)
        return [self._number(column, value) for value in values]

    def _number(self, column: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong(column, "a finite number", value)
        if abs(number) > LARGEST_REWARD:
            raise self._wrong(
                column, f"a number of at most {LARGEST_REWARD:g} in size, whose square float32 holds", value
            )
        return number

    def _messages(self, column: str, role: str) -> list[Message]:
        return as_messages(self._need(column), role, f"{self.place}: column '{column}'")

    def _need(self, column: str) -> Any:
        if not self.has(column):
            raise self._missing(column)
        return self.columns[column]

    def _refuse(self, expected: str, *columns: str) -> None:
        for column in filter(self.has, columns):
            raise InputError(f"{self.place}: column '{column}' does not fit; expected {expected}; rename or remove it")

    def _missing(self, wanted: str) -> InputError:
        there = ", ".join(c if self.has(c) else f"{c} (null)" for c in self.columns) or "nothing"
        return InputError(f"{self.place}: missing column {wanted}; the row has {there}; rename its columns")

    def _wrong(self, column: str, expected: str, value: Any) -> InputError:
        text = repr(value)
        brief = text if len(text) <= 60 else text[:57] + "..."
        return InputError(f"{self.place}: column '{column}' is {brief}; expected {expected}")
