"""`Row` reads the prompt, the completions and the rewards of one row of `data=jsonl`, and names the row in errors."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from shiqrun.data.chats import as_messages, prompt_name, shared_prompt, with_tools, without_prompt
from shiqrun.data.columns import LABEL, MARKS, Form, columns_read, form_of
from shiqrun.data.convert.messages import normal_tools
from shiqrun.data.convert.registry import FORMATS
from shiqrun.data.own_columns import likely_columns, nearest_shape
from shiqrun.data.pair_rewards import LARGEST_REWARD
from shiqrun.data.token_columns import sampled_tokens
from shiqrun.errors import InputError
from shiqrun.types import Message, SampledTokens

Reward = float | list[float]


class Parts(NamedTuple):
    """A `Parts` holds what was read of a row: prompt, completions, and rewards with the columns they are from."""

    prompt: list[Message]
    completions: list[list[Message]]
    rewards: list[Reward] | None
    rewards_from: str | None


@dataclass(frozen=True)
class Row:
    """A `Row` holds the columns of a row and its place in the file; a column that holds null counts as missing.

    Attributes:
        columns: of the row, by the names that they have here.
        place: file and row.
        names: the file's own column by the name that it has here, where they differ.
    """

    columns: dict[str, Any]
    place: str
    names: Mapping[str, str] = field(default_factory=dict)

    def has(self, column: str) -> bool:
        """Return whether the row has a value in a column."""
        return self.columns.get(column) is not None

    @cached_property
    def there(self) -> tuple[str, ...]:
        """Return the names of the columns that have a value."""
        return tuple([name for name, value in self.columns.items() if value is not None])

    @cached_property
    def form(self) -> Form:
        """Return the form of the row.

        Raises:
            InputError: it has no column with a completion.
        """
        form = form_of(self.there)
        if form is None:
            raise self._missing("completion, completions, chosen and rejected, or messages")
        return form

    def expect_form(self, *, after: str) -> None:
        """Check that the row has a known form; `after` says which forms the rows before it have, for the message.

        Raises:
            InputError: it has no column with a completion.
        """
        try:
            _ = self.form
        except InputError as error:
            before = f"; the rows before it are: {after}" if after else ""
            raise InputError(f"{error}{before}") from None

    def read(self, *, labels: bool) -> frozenset[str]:
        """Return the names of the columns that are read of this row; `labels` says whether a label is a reward."""
        names = columns_read(self.there)
        return names | {LABEL} if labels and self.label() is not None else names

    def label(self) -> bool | None:
        """Return whether the only completion of a row without rewards is marked as good; None where nothing says so."""
        value = self.columns.get(LABEL)
        if not isinstance(value, bool):
            return None
        one = form_of(self.there) in ("single", "chat") and not (self.has("reward") or self.has("rewards"))
        return value if one else None

    def repeats_prompt(self) -> bool | None:
        """Return whether each completion begins with the text of the prompt; None where not all are plain strings."""
        prompt, texts = self.columns.get("prompt"), self._completions()
        if not isinstance(prompt, str) or not prompt.strip() or not all(isinstance(text, str) for text in texts):
            return None
        return all(text.startswith(prompt) for text in texts)

    def _completions(self) -> list[Any]:
        """Return the values that hold completions, as they stand."""
        given = [self.columns.get(name) for name in MARKS[self.form]]
        return given[0] if self.form == "several" and isinstance(given[0], list) else given

    def behind_prompt(self) -> "Row":
        """Return the row with its completions, plain strings that repeat the prompt, cut behind it."""
        start, columns = len(self.columns["prompt"]), dict(self.columns)
        for name in MARKS[self.form]:
            value = columns[name]
            cut = [text[start:].lstrip() for text in (value if isinstance(value, list) else [value])]
            columns[name] = cut if isinstance(value, list) else cut[0]
        return replace(self, columns=columns)

    def parts(self) -> Parts:
        """Return the prompt, the completions and the rewards of the row.

        Raises:
            InputError: a column is missing, or holds something else than it should.
        """
        if self.form == "pair":
            return self._pair()
        if self.form == "several":
            return self._group()
        if self.form == "single":
            prompt = self._messages("prompt", "user")
            completion = without_prompt(prompt, self._messages("completion", "assistant"))
        else:
            chat = self._messages("messages", "user")
            start = next((i for i, m in enumerate(chat) if m["role"] == "assistant"), len(chat))
            prompt, completion = chat[:start], chat[start:]
        rewards, origin = self._single_reward(completion)
        return Parts(prompt, [completion], rewards, origin)

    def sampled(self, completions: int) -> list[SampledTokens] | None:
        """Return the tokens of each completion as it was sampled; None where the row has none."""
        if self.form not in ("single", "several"):
            return None
        several = self.form == "several"
        return sampled_tokens(self.columns, completions, self.place, several=several) or None

    def with_tools(self, prompt: Sequence[Message], *, read: bool) -> list[Message]:
        """Return the prompt with the tools of the row, which the column `tools` or its first message holds.

        Args:
            prompt: of the row.
            read: False leaves all tools out.

        Raises:
            InputError: the tools are no list of function schemas.
        """
        bare = [{key: value for key, value in message.items() if key != "tools"} for message in prompt]
        if not read:
            return bare
        return with_tools(bare, normal_tools(self.tools(prompt), f"{self.place}: column {self._named('tools')}"))

    def tools(self, prompt: Sequence[Message]) -> Any:
        """Return the tools of the row as they stand, None where it has none."""
        return self.columns["tools"] if self.has("tools") else prompt[0].get("tools") if prompt else None

    def prompt_id(self, prompt: Sequence[Message]) -> str:
        """Return the id of the prompt: the column's, or a hash of the messages."""
        if not self.has("prompt_id"):
            return prompt_name(prompt)
        value = self.columns["prompt_id"]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self._wrong("prompt_id", "a string or a whole number", value)
        return str(value)

    def answer(self) -> Any:
        """Return what a verifier reads: `tests`, else `answer`, else the value that `answer_json` spells."""
        if self.has("tests"):
            return self.columns["tests"]
        if self.has("answer") or not self.has("answer_json"):
            return self.columns.get("answer")
        try:
            return json.loads(self.columns["answer_json"])
        except (TypeError, ValueError, RecursionError):
            raise self._wrong("answer_json", "JSON as a text", self.columns["answer_json"]) from None

    def _pair(self) -> Parts:
        chosen, rejected = (self._messages(c, "assistant") for c in ("chosen", "rejected"))
        prompt = self._pair_prompt(chosen, rejected)
        completions = [without_prompt(prompt, chosen), without_prompt(prompt, rejected)]
        for column, completion in zip(("chosen", "rejected"), completions, strict=True):
            if prompt and completion and completion[0]["role"] in ("system", "user"):
                raise InputError(
                    f"{self.place}: column {self._named(column)} begins with a {completion[0]['role']} message that is "
                    "not the prompt's; give completions alone, or whole chats that begin with the messages of 'prompt'"
                )
        self._refuse("score_chosen and score_rejected", "reward", "rewards")
        if not (self.has("score_chosen") or self.has("score_rejected")):
            return Parts(prompt, completions, None, None)
        scores: list[Reward] = [self._number(c, self._need(c)) for c in ("score_chosen", "score_rejected")]
        return Parts(prompt, completions, scores, "score_chosen and score_rejected")

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

    def _group(self) -> Parts:
        prompt, values = self._messages("prompt", "user"), self.columns["completions"]
        if not isinstance(values, list) or not values:
            raise self._wrong("completions", "a list of one or more completions", values)
        place = f"{self.place}: column {self._named('completions')}"
        chats = [as_messages(v, "assistant", f"{place}, completion {i}") for i, v in enumerate(values)]
        chats = [without_prompt(prompt, chat) for chat in chats]
        self._refuse("rewards (a list, one entry a completion)", "reward")
        if not self.has("rewards"):
            return Parts(prompt, chats, None, None)
        rewards = self.columns["rewards"]
        if not isinstance(rewards, list) or len(rewards) != len(chats):
            raise self._wrong("rewards", f"a list of {len(chats)} numbers, one a completion", rewards)
        entries = [
            self._numbers("rewards", r, chat) if isinstance(r, list) else self._number("rewards", r)
            for r, chat in zip(rewards, chats, strict=True)
        ]
        return Parts(prompt, chats, entries, "rewards")

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
            number = float(value) if isinstance(value, int | float) else math.nan  # true is 1, false 0
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong(column, "a finite number, or true or false", value)
        if abs(number) > LARGEST_REWARD:
            raise self._wrong(
                column, f"a number of at most {LARGEST_REWARD:g} in size, whose square float32 holds", value
            )
        return number

    def _messages(self, column: str, role: str) -> list[Message]:
        return as_messages(self._need(column), role, f"{self.place}: column {self._named(column)}")

    def _need(self, column: str) -> Any:
        if not self.has(column):
            raise self._missing(column)
        return self.columns[column]

    def _refuse(self, expected: str, *columns: str) -> None:
        for column in filter(self.has, columns):
            raise InputError(
                f"{self.place}: column {self._named(column)} does not fit; expected {expected}; rename or remove it"
            )

    def _missing(self, wanted: str) -> InputError:
        there = ", ".join(c if self.has(c) else f"{c} (null)" for c in self.columns) or "nothing"
        log = next((name for name, log in FORMATS.items() if name != "openai" and log.fits(self.columns)), None)
        if log is not None:
            cure = f"this is a log that `shiqrun convert FILE --from {log}` makes rows of"
        elif form_of(self.there) is None:
            cure = nearest_shape(self.columns)
        elif likely := likely_columns(self.columns):
            cure = f"did you mean {' '.join(f'data.columns.{name}={own}' for name, own in likely.items())}?"
        else:
            cure = "name it by data.columns.NAME=COLUMN"
        return InputError(f"{self.place}: missing column {wanted}; the row has {there}; {cure}")

    def _named(self, column: str) -> str:
        """Return the name of a column as the user knows it."""
        own = self.names.get(column)
        return f"'{own}' (data.columns.{column})" if own else f"'{column}'"

    def _wrong(self, column: str, expected: str, value: Any) -> InputError:
        text = repr(value)
        brief = text if len(text) <= 60 else text[:57] + "..."
        return InputError(f"{self.place}: column {self._named(column)} is {brief}; expected {expected}")
