"""Functions for chat lists check the messages of a file, split prompts from completions, and hash prompts to ids."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from shiqrun.data.convert.messages import ROLE_OF, normal_call, text_of
from shiqrun.errors import InputError
from shiqrun.types import Message

PLAIN_KEYS = {"role", "content"}
OTHER_MARKS = ("training", "train_detail", "training_detail", "mask", "loss_weight")
"""Keys by which other tools mark what of a message is learned."""
_json = json.encoder.encode_basestring
"""Returns a text as `json.dumps(text, ensure_ascii=False)` does."""


def as_messages(value: Any, role: str, place: str) -> list[Message]:
    """Return a column's value as a chat list; a string becomes one message of `role`.

    The roles are those of ROLE_OF; each becomes system, user, assistant or tool. Text parts of a content are joined,
    and the arguments of a tool call become an object.

    Args:
        value: a string, or a list of `{"role": ..., "content": ...}`; keys that hold null are left out.
        role: of the message that a string becomes.
        place: file, line and column, for error messages.

    Raises:
        InputError: the value is neither a string nor a chat list, a role is unknown, a content is no text, or a tool
            call names no function or has arguments that are no JSON.
    """
    if isinstance(value, str):
        return [_checked({"role": role, "content": value}, place)]
    if not isinstance(value, list):
        raise InputError(f"{place}: expected a string or a list of messages, found {_brief(value)}")
    messages = [_checked(message, f"{place}, message {i}") for i, message in enumerate(value)]
    late = [i for i, m in enumerate(messages) if "tools" in m and (i or m["role"] == "assistant")]
    if late:
        raise InputError(
            f"{place}, message {late[0]}: tools belong to the whole prompt; give them in the column 'tools', or in the "
            "first message"
        )
    return messages


def _checked(message: Any, place: str) -> Message:
    """Return one message of a chat list after checking its role, content and tool calls; null keys are left out."""
    if not isinstance(message, dict):
        raise InputError(f"{place}: expected an object with role and content, found {_brief(message)}")
    if _is_plain(message):
        kept = message | {"role": ROLE_OF[message["role"]]}
        if not kept["content"].isascii():
            _expect_text(kept, place)
        return kept
    kept = {key: value for key, value in message.items() if value is not None}
    if "role" not in kept:
        raise InputError(f"{place}: no 'role'; it has {', '.join(message) or 'nothing'}; expected role and content")
    if not isinstance(kept["role"], str) or kept["role"] not in ROLE_OF:
        raise InputError(f"{place}: role {_brief(kept['role'])}; expected one of {', '.join(ROLE_OF)}")
    kept["role"] = ROLE_OF[kept["role"]]
    calls = _read_json(kept.get("tool_calls", []))  # Parquet has them as a text where their arguments differ
    if not isinstance(calls, list) or not all(_names_function(call) for call in calls):
        form = 'a list of {"function": {"name": ..., "arguments": ...}}'
        raise InputError(f"{place}: tool_calls must be {form}, found {_brief(calls)}")
    calls = [*calls, *([kept.pop("function_call")] if "function_call" in kept else [])]
    if calls:
        kept["tool_calls"] = [_checked_call(call, f"{place}, tool call {i}") for i, call in enumerate(calls)]
    _check_mark(kept, place)
    empty = bool(calls or kept.get("reasoning_content"))
    if "content" not in kept and not empty:
        raise InputError(f"{place}: content must be a string, found {_brief(None)}")
    kept["content"] = text_of(kept.get("content"), place)
    _expect_text(kept, place)
    return kept


def _is_plain(message: dict[str, Any]) -> bool:
    """Return whether a message has a known role and a text, and nothing else: most have."""
    if len(message) != 2 or type(message.get("content")) is not str:
        return False
    role = message.get("role")
    return type(role) is str and role in ROLE_OF


def _expect_text(message: Message, place: str) -> None:
    """Check that no text of a message holds half of a surrogate pair."""
    try:
        json.dumps(message, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise InputError(f"{place}: content holds half a surrogate pair, which is no text") from None


def _read_json(value: Any) -> Any:
    """Return the value that a JSON text spells; any other value as it stands."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _check_mark(message: Message, place: str) -> None:
    """Check whether a message is marked as it can be, and leave out a mark that changes nothing."""
    other = next((key for key in OTHER_MARKS if key in message), None)
    if other is not None:
        raise InputError(f'{place}: {other} is not read; mark a message whose tokens are not learned by "train": false')
    mark = message.pop("train", None)
    if (weight := message.pop("weight", None)) is not None:  # OpenAI's key, 0 or 1
        if weight not in (0, 1) or mark not in (None, bool(weight)):
            raise InputError(f'{place}: weight is {_brief(weight)}; expected 0 ("train": false) or 1')
        mark = False if weight == 0 else mark
    if mark not in (None, True, False) or not isinstance(mark, bool | None):
        raise InputError(f"{place}: train is {_brief(mark)}; expected true or false")
    if mark and message["role"] != "assistant":
        raise InputError(
            f"{place}: train is true, but its role is {message['role']}: the tokens of assistant messages alone can be "
            "actions; remove the mark"
        )
    if mark is False and message["role"] == "assistant":
        message["train"] = False


def _checked_call(call: Any, place: str) -> dict[str, Any]:
    """Return a tool call as it stands, with its arguments, where it has some, as an object."""
    made = normal_call(call, place)["function"]
    function = {key: value for key, value in _function(call).items() if key != "args"}
    if made["arguments"] or "arguments" in function:
        function["arguments"] = made["arguments"]
    return {**call, "function": function} if "function" in call else {"type": "function", "function": function}


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


def expect_reasoning(message: Message, whole: str, source: str) -> None:
    """Check that a chat template shows the `reasoning_content` of a message somewhere in the rendered conversation.

    Raises:
        InputError: it is missing.
    """
    if "".join(str(message["reasoning_content"]).split()) not in "".join(whole.split()):
        raise InputError(
            f"{source}: the chat template leaves out reasoning_content; use a template that shows it, write it into "
            "content, or remove the key"
        )


def with_tools(prompt: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """Return the prompt with tool schemas, which lie in its first message under `tools`.

    So they go wherever the prompt goes: into its name, a rollout, a cache and a file of results.
    """
    return [{**prompt[0], "tools": [*tools]}, *prompt[1:]] if prompt and tools else list(prompt)


def tools_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the tool schemas that a prompt or conversation was given, none for most."""
    return list(messages[0].get("tools") or []) if messages else []


def wording(message: Message) -> str:
    """Return all text of a message: content, reasoning, and tool calls and schemas as JSON."""
    if len(message) == 2 and "content" in message and "role" in message:
        return str(message["content"])
    extra = [message[key] for key in ("tool_calls", "tools") if message.get(key)]
    parts = [message["content"], message.get("reasoning_content") or ""]
    return "".join(map(str, parts)) + "".join(json.dumps(x, ensure_ascii=False, default=str) for x in extra)


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
    """Return why a completion cannot be trained on (none of its assistant turns is, or all are empty), or None."""
    turns = trained(completion)
    if len(turns) == len(completion) == 1 and turns[0]["content"].strip():
        return None
    spoken = [m for m in completion if m["role"] == "assistant"]
    if spoken and not turns:
        return "every assistant message says train: false"
    if any(m["content"].strip() or m.get("tool_calls") for m in turns):
        return None
    return "empty completion" if turns else "no actions"


def trained(messages: Sequence[Message]) -> list[Message]:
    """Return the assistant messages whose tokens are actions: all that do not say `"train": false`."""
    return [m for m in messages if m["role"] == "assistant" and m.get("train") is not False]


def prompt_name(prompt: Sequence[Message]) -> str:
    """Return the id of a prompt: 16 hexadecimal digits of a hash of its messages and tools, the same anywhere.

    Templates show the keys of tools and of calls in their order, and so it belongs to the id.
    """
    if all(m.keys() == PLAIN_KEYS and type(m["role"]) is type(m["content"]) is str for m in prompt):
        plain = [f'{{"content": {_json(m["content"])}, "role": {_json(m["role"])}}}' for m in prompt]
        return blake2b(f"[{', '.join(plain)}]".encode(), digest_size=8).hexdigest()
    ordered = [
        {k: json.dumps(v, ensure_ascii=False, default=str) if k in ("tools", "tool_calls") else v for k, v in m.items()}
        for m in prompt
    ]
    text = json.dumps(ordered, sort_keys=True, ensure_ascii=False, default=str)
    return blake2b(text.encode(), digest_size=8).hexdigest()
