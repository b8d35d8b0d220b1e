"""These pure functions bring chat messages and tool schemas of other tools into one form, that of OpenAI's chats.

A message is `{"role", "content"}` with a text as content; an assistant message may have `tool_calls` (a list of
`{"id", "type": "function", "function": {"name", "arguments"}}`, with arguments as an object) and `reasoning_content`,
a tool message a `tool_call_id` and a `name`, and any message `"train": false` or OpenAI's `"weight": 0`.
"""

import json
from collections.abc import Iterator
from typing import Any

from shiqrun.errors import InputError

Message = dict[str, Any]
"""As `shiqrun.types.Message`, which lies beside tensors: converting starts without torch."""

ROLE_OF = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""The role in a chat of every name that formats have for it."""

TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")
"""The types of JSON schemas."""
KEYWORDS = {"type", "properties", "required", "additionalProperties", "anyOf", "oneOf", "allOf", "$ref", "$schema"}
"""Keys by one of which the parameters of a function show that they are a JSON schema."""
MARKS = ("train", "weight")
"""Keys that say whether a message is trained on; `weight` is OpenAI's, 0 or 1."""
KEPT = ("reasoning_content", "tool_call_id", "name", *MARKS)
TEXT_PARTS = ("text", "input_text", "output_text")


def normal_messages(value: Any, place: str) -> list[Message]:
    """Return a list of messages in OpenAI's form.

    Args:
        value: a list of messages of any known form.
        place: file, row and column, for error messages.

    Raises:
        InputError: no list of messages, an unknown role, a content that is no text, or a broken tool call.
    """
    if not isinstance(value, list):
        raise InputError(f"{place}: expected a list of messages, found {brief(value)}; name the column that holds them")
    return [normal_message(message, f"{place}, message {i}") for i, message in enumerate(value)]


def normal_message(message: Any, place: str) -> Message:
    """Return one message in OpenAI's form; see `normal_messages`."""
    if not isinstance(message, dict):
        raise InputError(f"{place}: expected an object with role and content, found {brief(message)}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLE_OF:
        raise InputError(f"{place}: role {brief(role)}; expected one of {', '.join(ROLE_OF)}")
    made: Message = {"role": ROLE_OF[role], "content": text_of(message.get("content"), place)}
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise InputError(f"{place}: tool_calls must be a list, found {brief(calls)}")
    if message.get("function_call"):
        calls = [*calls, message["function_call"]]
    if calls:
        made["tool_calls"] = [normal_call(call, f"{place}, tool call {i}") for i, call in enumerate(calls)]
    made.update({key: message[key] for key in KEPT if message.get(key) is not None})
    return made


def text_of(content: Any, place: str) -> str:
    """Return a message's content as text: null is empty, and text parts are joined.

    Raises:
        InputError: a part is no text, such as an image.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"{place}: content must be a text or a list of text parts, found {brief(content)}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part if isinstance(part, str) else part.get("text") if kind in TEXT_PARTS else None
        if not isinstance(text, str):
            raise InputError(f"{place}: a content part of type {kind!r} is no text; remove it, or drop the row")
        texts.append(text)
    return "".join(texts)


def normal_call(call: Any, place: str) -> dict[str, Any]:
    """Return a tool call in OpenAI's form; bare `{"name", "arguments"}` (or "args") are accepted.

    Raises:
        InputError: the call names no function, or its arguments are no JSON object.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(f"{place}: expected an object with the name of a function, found {brief(call)}")
    arguments = function.get("arguments", function.get("args"))
    named = {"name": function["name"], "arguments": normal_arguments(arguments, f"{place} of {function['name']}")}
    made = {"type": "function", "function": named}
    return {"id": call["id"], **made} if call.get("id") is not None else made


def normal_arguments(value: Any, place: str) -> dict[str, Any]:
    """Return the arguments of a tool call as an object; a text is read as JSON, null and an empty text are `{}`.

    Raises:
        InputError: no JSON object.
    """
    value = json_value(value, f"{place}: arguments are", "mend them or drop the row")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{place}: arguments must be a JSON object, found {brief(value)}; mend them or drop the row")
    return value


def normal_tools(value: Any, place: str) -> list[dict[str, Any]]:
    """Return tool schemas as a list of `{"type": "function", "function": {"name", ...}}`; a text is read as JSON.

    Keys that hold null are left out where the value is no text: tables (Parquet) give all objects the same keys.

    Raises:
        InputError: no JSON, no list, or a schema without the name of a function.
    """
    given = json_value(value, f"{place}: tools are", "give a list of function schemas")
    if given is None:
        return []
    if not isinstance(given, list):
        raise InputError(f"{place}: tools must be a list of function schemas, found {brief(given)}")
    made = []
    for tool in given if isinstance(value, str) else without_nulls(given):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{place}: a tool is {brief(tool)}; expected a function schema with a name")
        made.append({"type": "function", "function": _normal_function(function, f"{place}, {function['name']}")})
    return made


def json_value(value: Any, what: str, cure: str) -> Any:
    """Return the value that a JSON text spells, None for an empty text; any other value as it stands.

    Args:
        value: a text, or what it would spell.
        what: place and subject of the error message, as in "file:1: tools are".
        cure: its advice.

    Raises:
        InputError: a text that is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise InputError(f"{what} no JSON: {brief(value)}; {cure}") from None


def without_nulls(value: Any) -> Any:
    """Return a JSON value without the keys of its objects that hold null."""
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return value


def _normal_function(function: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a function's schema in OpenAI's form; `input_schema` is Anthropic's name of its parameters."""
    given = {key: value for key, value in function.items() if key != "type" and value is not None}
    made = {{"input_schema": "parameters"}.get(key, key): value for key, value in given.items()}
    parameters = made.get("parameters", {})
    if not isinstance(parameters, dict) or (parameters and not KEYWORDS & parameters.keys()):
        expected = 'a JSON schema such as {"type": "object", "properties": {"city": {"type": "string"}}}'
        raise InputError(f"{place}: parameters are {brief(parameters)}; expected {expected}")
    _check_schema(parameters, f"{place}: parameters")
    if not isinstance(made.get("description", ""), str):
        raise InputError(f"{place}: the description is {brief(made['description'])}; expected a text")
    return made


def _check_schema(schema: Any, place: str) -> None:
    """Check what a chat template reads of a JSON schema: types, properties, required ones, and the parts of both.

    Raises:
        InputError: a part is no JSON schema.
    """
    if not isinstance(schema, dict | bool):
        expected = 'a JSON schema such as {"type": "string"}'
        raise InputError(f"{place}: found {brief(schema)}; expected {expected}")
    if isinstance(schema, bool):
        return
    kinds, required = schema.get("type", []), schema.get("required", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind not in TYPES:
            raise InputError(f"{place}: type {brief(kind)}; JSON schemas have {', '.join(TYPES)}")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise InputError(f"{place}: required is {brief(required)}; expected a list of names, as in a JSON schema")
    for name, part in _parts(schema, place):
        _check_schema(part, f"{place}: {name}")


def _parts(schema: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """Yield the schemas within a schema, by name."""
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise InputError(f"{place}: properties are {brief(properties)}; expected a JSON schema for each, by name")
    yield from ((f"property '{name}'", part) for name, part in properties.items())
    for key in ("anyOf", "oneOf", "allOf"):
        yield from ((key, part) for part in (schema[key] if isinstance(schema.get(key), list) else ()))
    if isinstance(schema.get("items"), dict):
        yield "items", schema["items"]


def brief(value: Any) -> str:
    """Return a value's type and the beginning of its text, for error messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
