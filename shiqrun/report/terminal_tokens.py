"""`TokenLines` sets a trajectory's tokens in lines of a terminal, with rewards and numbers beneath them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from shiqrun.batching.encode import EncodedTrajectory

ACTION_STYLES = ("black on green", "black on cyan")  # by turns, so that neighbouring tokens can be told apart
WORD_ROOM = 10  # columns at the right margin where a line breaks before a word instead of within it


def heading_lines(trajectory: "EncodedTrajectory") -> Iterator[Text]:
    """Yield the heading of a trajectory: where it is from, then its tokens, actions and return."""
    t = trajectory
    earned = "no rewards" if t.rewards is None else f"return {t.rewards.sum():g}"
    yield Text(f"{t.source}, completion {t.completion + 1} of prompt {t.prompt_id}", style="bold")
    yield Text(f"{len(t.input_ids):,} tokens, {len(t.action_index):,} actions, {earned}", style="dim")


def rewards_to_show(rewards: dict[int, float]) -> dict[int, float]:
    """Return a trajectory's rewards, by position, that are not 0; the last one where all are 0."""
    return {at: reward for at, reward in rewards.items() if reward} or dict(list(rewards.items())[-1:])


def reward_text(shown: dict[int, float], at: int, before: str = "") -> Text:
    """Return the reward of a position as the text beneath its token; empty where none is shown."""
    if at not in shown:
        return Text()
    return Text(f"{before}{shown[at]:g}", "bold red" if shown[at] < 0 else "bold yellow")


def brackets_around(actions: "dict[int, int] | set[int]", at: int, brackets: tuple[str, str]) -> tuple[str, str]:
    """Return the opening and closing bracket of a position, empty but at the ends of a sequence of actions."""
    acts = at in actions
    return brackets[0] * (acts and at - 1 not in actions), brackets[1] * (acts and at + 1 not in actions)


@dataclass
class TokenLines:
    """`TokenLines` sets tokens in lines of at most `width` columns, with rows of texts beneath the tokens."""

    width: int
    done: list[Text] = field(default_factory=list)
    text: Text = field(default_factory=Text)
    beneath: list[Text] = field(default_factory=list)

    def add(
        self, piece: str, style: str | Style, beneath: Sequence[Text], around: tuple[str, str], *, least: int = 0
    ) -> None:
        """Append a token; a line break in it is shown as an arrow and starts a new line.

        Args:
            piece: text of the token.
            style: of the text.
            beneath: texts under its first column, a row each.
            around: opening and closing bracket.
            least: smallest number of columns that it takes.
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

    def finish(self) -> list[Text]:
        """End the last line of tokens and return all lines."""
        self._end()
        return self.done


def printable(text: str) -> str:
    """Return the text with control characters, which could steer a terminal, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
