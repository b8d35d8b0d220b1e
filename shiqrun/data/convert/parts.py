"""`messages_of_parts` reads messages of typed parts, as OpenTelemetry, LangChain and Anthropic have them.

Tool calls, results of tools and reasoning are parts there. In OpenAI's form calls and reasoning are keys of the
message, and each result is a message of its own.
"""

import json
from collections.abc import Iterator
from typing import Any

from shiqrun.data.convert.messages import Message, normal_message

CALLS = ("tool_call", "tool_use")
RESULTS = ("tool_call_response", "tool_result")
THOUGHTS = ("reasoning", "thinking")
"""Types of parts: the first of each in OpenTelemetry, and LangChain's or Anthropic's name of it."""


def messages_of_parts(message: Any, place: str) -> Iterator[Message]:
    """Yield a message in OpenAI's form; each result of a tool among its parts becomes a tool message of its own.

    Args:
        message: with a list under `parts` or `content`; one with a text is read as it is.
        place: file, row and column, for error messages.

    Raises:
        InputError: as `normal_message`; an image, or a call that the provider answered itself, is no text.
    """
    parts = message.get("parts", message.get("content")) if isinstance(message, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        yield normal_message(message, place)
        return
    kinds = [part.get("type") for part in parts]
    answers = [part for part, kind in zip(parts, kinds, strict=True) if kind in RESULTS]
    for part in answers:
        yield tool_result(_first(part, "id", "tool_use_id", "tool_call_id"), _said(part))
    calls = [_call(part) for part, kind in zip(parts, kinds, strict=True) if kind in CALLS]
    thought = "".join(str(_words(part)) for part, kind in zip(parts, kinds, strict=True) if kind in THOUGHTS)
    rest = [
        {"type": kind, "text": _words(part)}
        for part, kind in zip(parts, kinds, strict=True)
        if kind not in (*CALLS, *RESULTS, *THOUGHTS)
    ]
    if rest or calls or thought or not answers:
        kept = {key: value for key, value in message.items() if key != "parts"} | {"content": rest}
        if calls and not message.get("tool_calls"):  # LangChain repeats Anthropic's calls there
            kept["tool_calls"] = calls
        yield normal_message(kept | ({"reasoning_content": thought} if thought else {}), place)


def tool_result(name: Any, said: Any) -> Message:
    """Return the tool message that answers the call of that id; what is no text is written as JSON."""
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return {"role": "tool", "content": text} | ({"tool_call_id": name} if name else {})


def _call(part: dict[str, Any]) -> dict[str, Any]:
    arguments = _first(part, "arguments", "args", "input")
    return {"id": part.get("id"), "name": part.get("name"), "arguments": arguments}


def _words(part: dict[str, Any]) -> Any:
    return _first(part, "text", "content", "thinking")


def _said(part: dict[str, Any]) -> Any:
    """Return what a tool said: a value, or Anthropic's list of text parts joined."""
    said = _first(part, "response", "result", "output", "content")
    if isinstance(said, list) and said and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in said):
        return "".join(p["text"] for p in said)
    return said


def _first(part: dict[str, Any], *names: str) -> Any:
    return next((part[name] for name in names if part.get(name) is not None), None)
