"""`segments` finds in a trajectory's text where each message begins, and which part the chat template made of tools."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from shiqrun.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shiqrun.types import Example, Message

TOOLS = "tools"
"""The role of a segment that the chat template made of tool schemas."""
LARGEST_TEXT = 200_000
"""Characters of a prompt in which tools are looked for."""


@dataclass(frozen=True)
class Segment:
    """A `Segment` is a part of a trajectory's text: a message, or what the template made of tools.

    Attributes:
        role: of the message, or TOOLS; empty where the messages are not found in the text.
        start, end: characters of the text.
    """

    role: str
    start: int
    end: int


def segments(example: "Example", completion: int, text: str, tokenizer: "PreTrainedTokenizerBase") -> list[Segment]:
    """Return the segments of a trajectory's text, in order and without gaps.

    Args:
        example: with the messages of the trajectory.
        completion: number of the completion.
        text: of the trajectory's tokens.
        tokenizer: with the chat template that rendered it.
    """
    messages = [*example.messages, *example.completions[completion]]
    found, start = list[Segment](), 0
    for number, message in enumerate(messages, 1):
        last = number == len(messages)
        end = len(text) if last else _end(text, _rendered(messages[:number], tokenizer))
        if end is not None and end > start:
            found.append(Segment(str(message["role"]), start, end))
            start = end
    whole = _rendered(messages, tokenizer)
    if whole is None or _end(text, whole) is None:
        return [Segment("", 0, len(text))]
    spans = _tool_spans(messages, text, tokenizer) if example.tools else []
    return [part for segment in found for part in _split(segment, spans)]


def tool_line(tool: Mapping[str, Any]) -> str:
    """Return a tool as one line, `name(argument: type, optional?: type): description`."""
    function = tool.get("function", tool)
    parameters = function.get("parameters") or {}
    required = parameters.get("required") or []
    parts = [
        f"{name}{'' if name in required else '?'}: {_type(about)}"
        for name, about in (parameters.get("properties") or {}).items()
    ]
    description = " ".join(str(function.get("description") or "").split())
    return f"{function['name']}({', '.join(parts)})" + (f": {description}" if description else "")


def _type(schema: Any) -> str:
    given = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(given, list):
        return "|".join(map(str, given))
    return str(given or "any")


def _rendered(messages: "Sequence[Message]", tokenizer: "PreTrainedTokenizerBase", *, tools: bool = True) -> str | None:
    """Return the text that the chat template makes of messages; None where it refuses a part of a conversation."""
    from shiqrun.batching.chat_template import Conversation, render_texts

    given = list(messages) if tools else [{k: v for k, v in m.items() if k != "tools"} for m in messages]
    try:
        return render_texts([Conversation(given, len(given), "")], tokenizer)[0]
    except InputError:
        return None


def _end(text: str, beginning: str | None) -> int | None:
    """Return where a text's beginning ends, line breaks behind it included; None where it does not begin so.

    White space is no difference: decoding may add or lose some.
    """
    if beginning is None:
        return None
    at = 0
    for char in "".join(beginning.split()):
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text) or text[at] != char:
            return None
        at += 1
    while at < len(text) and text[at] == "\n":
        at += 1
    return at


def _tool_spans(
    messages: "Sequence[Message]", text: str, tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[int, int]]:
    """Return the parts of a text that the template adds for tools: the lines that name one."""
    opening = [*takewhile(lambda m: m["role"] != "assistant", messages)]
    shown, bare = _rendered(opening, tokenizer), _rendered(opening, tokenizer, tools=False)
    if shown is None or bare is None or not text.startswith(shown) or len(shown) > LARGEST_TEXT:
        return []
    names = [tool.get("function", tool)["name"] for tool in messages[0]["tools"]]
    return [(a, b) for a, b in _added(shown, bare) if any(name in shown[a:b] for name in names)]


def _added(longer: str, shorter: str) -> Iterator[tuple[int, int]]:
    """Yield the parts of a text that another one lacks, as line by line a comparison finds them."""
    lines, others = longer.splitlines(keepends=True), shorter.splitlines(keepends=True)
    ends = [0]
    for line in lines:
        ends.append(ends[-1] + len(line))
    for kind, a, b, c, d in SequenceMatcher(None, lines, others, autojunk=False).get_opcodes():
        if kind in ("insert", "equal") or a == b:
            continue
        new, old = "".join(lines[a:b]), "".join(others[c:d])
        head = next((n for n, (x, y) in enumerate(zip(new, old, strict=False)) if x != y), min(len(new), len(old)))
        rest = min(len(new), len(old)) - head
        tail = next((n for n in range(rest) if new[-1 - n] != old[-1 - n]), rest)
        yield ends[a] + head, ends[b] - tail


def _split(segment: Segment, spans: Sequence[tuple[int, int]]) -> Iterator[Segment]:
    """Yield the parts of a message's segment before, within and behind what was made of tools."""
    start = segment.start
    for a, b in spans:
        if segment.start <= a < segment.end:
            if a > start:
                yield Segment(segment.role, start, a)
            yield Segment(TOOLS, a, min(b, segment.end))
            start = min(b, segment.end)
    if start < segment.end:
        yield Segment(segment.role, start, segment.end)
