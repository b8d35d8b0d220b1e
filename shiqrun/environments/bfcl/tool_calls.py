"""Calls and functions of BFCL in the form of a chat template that shows tools, instead of `[f(a=1)]` and signatures."""

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shiqrun.environments.bfcl.calls import LONGEST_MESSAGE, arguments
from shiqrun.environments.bfcl.rendering import message_of

JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""Types that BFCL's documents name otherwise than JSON schemas."""
NAMES_OF_ARGUMENTS = ("arguments", "parameters")


class CallFormat(ABC):
    """A `CallFormat` writes messages with calls as the policy's chat template does, and reads them back."""

    @abstractmethod
    def written(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of an assistant message that makes these calls, each `{"name", "arguments"}`."""

    def message(self, text: str, documents: Sequence[Mapping[str, Any]]) -> str:
        """Return a message of `[f(a=1), g()]` in this form; prose stays as it is, and what is cut off is cut off here.

        Args:
            text: of the message.
            documents: of the functions, whose order of arguments names positional ones.
        """
        for ending in ("", ")]", "]"):
            calls = _calls(text + ending, documents)
            if calls:
                whole = self.written(calls)
                return whole[: whole.rfind("}")] if ending else whole
        return text

    def read(self, text: str) -> str:
        """Return a message in this form as `[f(a=1), g()]`; empty for prose."""
        calls = list(json_calls(text)) if len(text) <= LONGEST_MESSAGE else []
        return message_of([call_text(call) for call in calls]) if calls else ""


def schemas(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the functions of BFCL's documents as OpenAI's schemas of tools."""
    return [
        {
            "type": "function",
            "function": {
                "name": document["name"],
                "description": document["description"],
                "parameters": _schema(document["parameters"]),
            },
        }
        for document in documents
    ]


def _schema(given: Any) -> Any:
    if isinstance(given, list):
        return [_schema(part) for part in given]
    if not isinstance(given, dict):
        return given
    made = {key: _schema(value) for key, value in given.items()}
    if isinstance(made.get("type"), str):
        made["type"] = JSON_TYPES.get(made["type"], made["type"])
    return made


def json_calls(text: str) -> Iterator[dict[str, Any]]:
    """Yield the calls in a text: objects with a name and arguments (or parameters), alone, in lists or in tags."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find("{", at)) >= 0:
        try:
            found, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        call = found.get("function", found) if isinstance(found, dict) else found
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            given: Any = next((call[name] for name in NAMES_OF_ARGUMENTS if name in call), {})
            if isinstance(given, dict):
                yield {"name": call["name"], "arguments": given}


def call_text(call: Mapping[str, Any]) -> str:
    """Return a call as Python text, `f(a=1)`."""
    return f"{call['name']}({', '.join(f'{key}={value!r}' for key, value in call['arguments'].items())})"


def _calls(text: str, documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls of a message of `[f(a=1), g()]`, none for prose."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return []
    nodes = tree.elts if isinstance(tree, ast.List) else []
    if not nodes or not all(isinstance(node, ast.Call) and isinstance(node.func, ast.Name) for node in nodes):
        return []
    return [_call(node, documents) for node in nodes if isinstance(node, ast.Call)]


def _call(node: ast.Call, documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    name = ast.unparse(node.func)
    plain, named = arguments(node)
    found = [document for document in documents if document["name"] == name]
    keys = list(found[0]["parameters"].get("properties", {}))[: len(plain)] if found else []
    return {"name": name, "arguments": dict(zip(keys, plain, strict=True)) | named}
