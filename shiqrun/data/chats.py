"""Chat lists: checked messages from the columns of a file, where a prompt ends, and the name of a prompt."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from shiqrun.errors import InputError
from shiqrun.types import Message

ROLES = ("system", "user", "assistant", "tool")


def as_messages(value: Any, role: str, place: str) -> list[Message]:
    """The chat list in `value`: itself, or one message of `role` where it is a string.

    Args:
        value: a string, or a list of `{"role": ..., "content": ...}`; keys that hold null are left out.
        role: of a string.
        place: file, line and column, for messages.

    Raises:
        InputError: neither a string nor a chat list; a role that is none of ROLES; a content that is not text;
            tool calls that name no function.
    """
    if isinstance(value, str):
        return [_checked({"role": role, "content": value}, place)]
    if not isinstance(value, list):
        raise InputError(f"{place}: expected a string or a list of messages, found {_brief(value)}")
    return [_checked(message, f"{place}, message {i}") for i, message in enumerate(value)]


def _checked(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise InputError(f"{place}: expected an object with role and content, found {_brief(message)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if "role" not in kept:
        raise InputError(f"{place}: no 'role'; it has {', '.join(message) or 'nothing'}; expected role and content")
    if kept["role"] not in ROLES:
        raise InputError(f"{place}: role {_brief(kept['role'])}; expected one of {', '.join(ROLES)}")
    calls = kept.get("tool_calls", [])
    if not isinstance(calls, list) or not all(_names_function(call) for call in calls):
        form = 'a list of {"function": {"name": ..., "arguments": ...}}'
        raise InputError(f"{place}: tool_calls must be {form}, found {_brief(calls)}")
    content = kept.setdefault("content", "" if kept.get("tool_calls") else None)
    if not isinstance(content, str):
        raise InputError(f"{place}: content must be a string, found {_brief(content)}")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise InputError(f"{place}: content holds half a surrogate pair, which is no text") from None
    return kept


def _names_function(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(_function(call), dict) and isinstance(_function(call).get("name"), str)


def _function(call: dict[str, Any]) -> Any:
    return call.get("function", call)


def calls_of(message: Message) -> list[tuple[str, Any]]:
    """(name, arguments) of each of a message's tool calls; the arguments as they stand, an object or its JSON."""
    functions = [_function(call) for call in message.get("tool_calls") or []]
    return [(function["name"], function.get("arguments")) for function in functions]


def expect_calls(message: Message, shown: str, source: str) -> None:
    """Nothing where `shown`, the tokens of the message in text, names all functions that it calls.

    Raises:
        InputError: one is missing: a policy trained on it would learn to say nothing instead.
    """
    names = [name for name, _ in calls_of(message)]
    if not all(name in shown for name in names):
        raise InputError(
            f"{source}: the chat template leaves out tool calls of {', '.join(names)}; use a template that shows "
            "tool_calls, or write the calls into content"
        )


def wording(message: Message) -> str:
    """All text of a message: its content, and its tool calls as JSON."""
    calls = message.get("tool_calls")
    return f"{message['content']}{json.dumps(calls, ensure_ascii=False, default=str) if calls else ''}"


def _brief(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def without_prompt(prompt: Sequence[Message], chat: Sequence[Message]) -> list[Message]:
    """The completion in `chat`: what follows the prompt where the chat begins with it, else all of it."""
    starts = len(prompt) > 0 and list(chat[: len(prompt)]) == list(prompt)
    return list(chat[len(prompt) :]) if starts else list(chat)


def shared_prompt(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Length of the prompt that two whole chats share: it ends before the last assistant turn up to which they agree.

    So each chat keeps an assistant turn even where the chats are equal; 0 where they share nothing.
    """
    cut = 0
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a["role"] == b["role"] == "assistant":
            cut = i
        if a != b:
            break
    return cut


def drop_reason(completion: Sequence[Message]) -> str | None:
    """Why a completion cannot be learned from, or None: "empty completion" or "no actions" (no assistant turn)."""
    turns = [m for m in completion if m["role"] == "assistant"]
    if any(m["content"].strip() or m.get("tool_calls") for m in turns):
        return None
    return "empty completion" if turns else "no actions"


def prompt_name(prompt: Sequence[Message]) -> str:
    """A prompt's id, 16 hexadecimal digits: the same for equal messages on every machine."""
    text = json.dumps(list(prompt), sort_keys=True, ensure_ascii=False, default=str)
    return blake2b(text.encode(), digest_size=8).hexdigest()
