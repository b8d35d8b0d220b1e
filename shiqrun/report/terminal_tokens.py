"""Tokens in lines on a terminal, and what belongs to them in rows beneath."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shiqrun.batching.encode import EncodedTrajectory

ACTION_STYLES = ("black on green", "black on cyan")  # in turn, so that the tokens can be told apart
WORD_ROOM = 10  # columns before the right margin where a line is rather broken before a word than within it


def rendered(
    trajectory: "EncodedTrajectory", tokenizer: "PreTrainedTokenizerBase", *, width: int, brackets: tuple[str, str]
) -> Iterator[Text]:
    """A heading, then the tokens in lines of at most `width` columns, each followed by its rewards if it has any.

    Args:
        trajectory: from `encode`.
        tokenizer: that made it.
        width: columns.
        brackets: put around each run of actions.
    """
    from shiqrun.batching.token_text import pieces

    t = trajectory
    earned = "no rewards" if t.rewards is None else f"return {t.rewards.sum():g}"
    yield Text(f"{t.source}, completion {t.completion + 1} of prompt {t.prompt_id}", style="bold")
    yield Text(f"{len(t.input_ids):,} tokens, {len(t.action_index):,} actions, {earned}", style="dim")
    at = t.action_index.tolist()
    shown = shown_rewards(dict(zip(at, [] if t.rewards is None else t.rewards.tolist(), strict=False)))
    number = {place: n for n, place in enumerate(at)}
    lines = Lines(width)
    for i, piece in enumerate(pieces(t.input_ids.tolist(), tokenizer)):
        style = ACTION_STYLES[number[i] % 2] if i in number else "dim"
        lines.add(piece, style, [reward_text(shown, i)], around(number, i, brackets))
    yield from lines.ended()
    yield Text()


def shown_rewards(rewards: dict[int, float]) -> dict[int, float]:
    """Of the reward at each action's position those that are not 0; the last if all are."""
    return {at: reward for at, reward in rewards.items() if reward} or dict(list(rewards.items())[-1:])


def reward_text(shown: dict[int, float], at: int, before: str = "") -> Text:
    """The reward of a position as it stands beneath its token, empty where none is shown."""
    if at not in shown:
        return Text()
    return Text(f"{before}{shown[at]:g}", "bold red" if shown[at] < 0 else "bold yellow")


def around(actions: "dict[int, int] | set[int]", at: int, brackets: tuple[str, str]) -> tuple[str, str]:
    """What opens and closes the token at a position: the brackets go around each run of actions."""
    acts = at in actions
    return brackets[0] * (acts and at - 1 not in actions), brackets[1] * (acts and at + 1 not in actions)


@dataclass
class Lines:
    """Lines of tokens of at most `width` columns, each with the rows beneath it that hold anything."""

    width: int
    done: list[Text] = field(default_factory=list)
    text: Text = field(default_factory=Text)
    beneath: list[Text] = field(default_factory=list)

    def add(
        self, piece: str, style: str | Style, beneath: Sequence[Text], around: tuple[str, str], *, least: int = 0
    ) -> None:
        """One token; a line break in it is shown as an arrow and followed.

        Args:
            piece: its text.
            style: of the text.
            beneath: what stands under its beginning, a row each.
            around: what opens and closes it.
            least: columns that it takes at least.
        """
        parts = [printable(part) for part in piece.split("\n")]
        for i, part in enumerate(parts):
            first, last = i == 0, i == len(parts) - 1
            part = around[0] * first + part + (around[1] if last else "↵")
            part += " " * (least - cell_len(part)) * first
            room = self.width - (WORD_ROOM if part.startswith(" ") else 0)
            if self.text.cell_len and self.text.cell_len + cell_len(part) > room:
                self._end()
            if first:
                self._place(beneath)
            self.text.append(part, style)
            if not last:
                self._end()

    def _place(self, beneath: Sequence[Text]) -> None:
        while len(self.beneath) < len(beneath):
            self.beneath.append(Text())
        for row, words in zip(self.beneath, beneath, strict=False):
            if words:
                gap = self.text.cell_len - row.cell_len
                row.append(" " * max(gap, bool(row)))
                row.append_text(words)

    def _end(self) -> None:
        self.done += [line for line in (self.text, *self.beneath) if line]
        self.text, self.beneath = Text(), []

    def ended(self) -> list[Text]:
        """All lines, the last one closed."""
        self._end()
        return self.done


def printable(text: str) -> str:
    """The text with characters that would steer a terminal as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
