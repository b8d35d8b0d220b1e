"""`message_lines` prints a trajectory message by message: roles at the left, tools folded, rewards beneath actions."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from shiqrun.report.message_segments import TOOLS, Segment, segments, tool_line
from shiqrun.report.terminal_tokens import (
    ACTION_STYLES,
    TokenLines,
    brackets_around,
    heading_lines,
    printable,
    reward_text,
    rewards_to_show,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shiqrun.batching.encode import EncodedTrajectory
    from shiqrun.types import Example

MARGIN = 11
"""Columns of the roles at the left."""


def message_lines(
    trajectory: "EncodedTrajectory",
    example: "Example",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    width: int,
    brackets: tuple[str, str],
    fold: bool = True,
) -> Iterator[Text]:
    """Yield the lines of an encoded trajectory: a heading, then each message with its role and its tokens.

    Args:
        trajectory: from `encode`.
        example: that it was encoded from.
        tokenizer: that encoded it.
        width: columns of the terminal.
        brackets: put around each sequence of neighbouring actions.
        fold: one line for each tool, instead of the tokens that the template makes of its schema.
    """
    from shiqrun.batching.token_text import pieces

    yield from heading_lines(trajectory)
    words = [*pieces(trajectory.input_ids.tolist(), tokenizer)]
    actions = {place: number for number, place in enumerate(trajectory.action_index.tolist())}
    shown = _rewards(trajectory, example)
    token, at = 0, 0
    for segment in segments(example, trajectory.completion, "".join(words), tokenizer):
        first = token
        while token < len(words) and (at < segment.end or not words[token]):
            at += len(words[token])
            token += 1
        if fold and segment.role == TOOLS:
            lines = [*_tool_lines(example, token - first, width - MARGIN)]
        else:
            lines = _token_lines(range(first, token), words, actions, shown, _inner(segment, width), brackets)
        yield from _beside(segment, lines)
    yield Text()


def _inner(segment: Segment, width: int) -> int:
    return max(width - MARGIN, MARGIN) if segment.role else width


def _beside(segment: Segment, lines: list[Text]) -> Iterator[Text]:
    """Yield lines with the segment's role before the first of them."""
    for number, line in enumerate(lines):
        if segment.role:
            yield Text.assemble((f"{segment.role if not number else '':<{MARGIN}}", "bold"), line)
        else:
            yield line


def _token_lines(
    tokens: range,
    words: list[str],
    actions: Mapping[int, int],
    shown: dict[int, float],
    width: int,
    brackets: tuple[str, str],
) -> list[Text]:
    """Return the lines of some tokens, with the rewards beneath them."""
    lines, acting = TokenLines(width), set(actions)
    for i in tokens:
        style = ACTION_STYLES[actions[i] % 2] if i in actions else "dim"
        lines.add(words[i], style, [reward_text(shown, i)], brackets_around(acting, i, brackets))
    return lines.finish()


def _tool_lines(example: "Example", tokens: int, width: int) -> Iterator[Text]:
    """Yield a line for each tool, cut off at the margin."""
    yield Text(f"{tokens:,} tokens; tools=shown prints them", style="dim")
    for tool in example.tools:
        line = Text(printable(tool_line(tool)))
        line.truncate(width, overflow="ellipsis")
        yield line


def _rewards(trajectory: "EncodedTrajectory", example: "Example") -> dict[int, float]:
    """Return the rewards to show by position: all that are not 0, and where each turn has one, that of each turn."""
    if trajectory.rewards is None:
        return {}
    by_place = dict(zip(trajectory.action_index.tolist(), trajectory.rewards.tolist(), strict=True))
    shown = rewards_to_show(by_place)
    given = example.rewards[trajectory.completion] if example.rewards else 0.0
    if isinstance(given, int | float) or len(given) >= len(by_place):
        return shown
    return {place: reward for place, reward in by_place.items() if place in shown or place + 1 not in by_place}


def brief_text(text: str, room: int) -> str:
    """Return the beginning of a text in one line of at most `room` columns."""
    line = printable(" ".join(text[: 4 * room].split()))
    if cell_len(line) <= room:
        return line
    return line[: max(room - 1, 0)] + "…"
