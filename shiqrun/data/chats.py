"""Functions for chat lists check the messages of a file, split prompts from completions, and hash prompts to ids."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from shiqrun.errors import InputError
from shiqrun.types import Message

ROLES = ("system", "user", "assistant", "tool")


def as_messages(value: Any, role: str, place: str) -> list[Message]:
    """Return a column's value as a chat list; a string becomes one message of `role`.

    Args:
        value: a string, or a list of `{"role": ..., "content": ...}`; keys that hold null are left out.
        role: of the message that a string becomes.
        place: file, line and column, for error messages.

    Raises:
        InputError: the value is neither a string nor a chat list, a role is none of ROLES, a content is no text, or a
            tool call names no function.
    """
    if isinstance(value, str):
        return [_checked({"role": role, "content": value}, place)]
    if not isinstance(value, list):
        raise InputError(f"{place}: expected a string or a list of messages, found {_brief(value)}")
    return [_checked(message, f"{place}, message {i}") for i, message in enumerate(value)]


def _checked(message: Any, place: str) -> Message:
    """Return one message of a chat list after checking its role, content and tool calls; null keys are left out."""
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
    """Return (name, arguments) of each tool call of a message; arguments as they stand, an object or its JSON."""
    functions = [_function(call) for call in message.get("tool_calls") or []]
    return [(function["name"], function.get("arguments")) for function in functions]


def expect_calls(message: Message, shown: str, source: str) -> None:
    """Check that a chat template shows the tool calls of a message.

    Args:
        message: of the assistant.
        shown: the message as the template renders it.
        source: file and line, for error messages.

    Raises:
        InputError: the name of a called function is missing: a policy would learn to say nothing instead.
    """
    names = [name for name, _ in calls_of(message)]
    if not all(name in shown for name in names):
        raise InputError(
            f"{source}: the chat template leaves out tool calls of {', '.join(names)}; use a template that shows "
            "tool_calls, or write the calls into content"
        )


def wording(message: Message) -> str:
    """Return all text of a message: its content, and its tool calls as JSON."""
    calls = message.get("tool_calls")
    return f"{message['content']}{json.dumps(calls, ensure_ascii=False, default=str) if calls else ''}"


def _brief(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def without_prompt(prompt: Sequence[Message], chat: Sequence[Message]) -> list[Message]:
    """Return the completion in a chat: what follows the prompt if the chat begins with it, else the whole chat."""
    starts = len(prompt) > 0 and list(chat[: len(prompt)]) == list(prompt)
    return list(chat[len(prompt) :]) if starts else list(chat)


def shared_prompt(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Return the length in messages of the prompt that two whole chats share; 0 where they share nothing.

    The prompt ends before the last assistant turn up to which the chats agree, so that each chat keeps an assistant
    turn even where both are equal.
    """
    cut = 0
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a["role"] == b["role"] == "assistant":
            cut = i
        if a != b:
            break
    return cut


def drop_reason(completion: Sequence[Message]) -> str | None:
    """Return why a completion cannot be trained on: "empty completion", "no actions" (no assistant turn), or None."""
    turns = [m for m in completion if m["role"] == "assistant"]
    if any(m["content"].strip() or m.get("tool_calls") for m in turns):
        return None
    return "empty completion" if turns else "no actions"


def prompt_name(prompt: Sequence[Message]) -> str:
    """Return the id of a prompt: a hash of its messages in 16 hexadecimal digits, the same on every machine."""
    text = json.dumps(list(prompt), sort_keys=True, ensure_ascii=False, default=str)
    return blake2b(text.encode(), digest_size=8).hexdigest()
