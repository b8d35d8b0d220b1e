"""These functions write a BFCL dialogue as the policy sees it: the message with the functions, calls, results."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from shiqrun.types import Message

Functions = Literal["auto", "tools", "official", "signatures", "names", "none"]
Shown = Literal["official", "signatures", "names", "none"]
DONE = "Done."
"""The message with which a logged trajectory ends a turn; any message without a call would end it."""
_FORMAT = "Call functions as [f(a=1), g()], nothing else in the message. Without calls the turn ends."


def system_messages(documents: Sequence[dict[str, Any]], functions: Shown) -> list[Message]:
    """Return the system message that shows the functions, or none.

    official      the prompt of `bfcl-eval`: instructions and each function's document as JSON
    signatures    the format of calls, and one line a function: `cp(source: string, destination: string)`
    names         the names of the functions alone
    none          nothing, for policies that learn the functions from the dialogues
    """
    match functions:
        case "official":
            from bfcl_eval.constants.default_prompts import DEFAULT_SYSTEM_PROMPT

            text = str(DEFAULT_SYSTEM_PROMPT).format(functions=json.dumps(list(documents)))
        case "signatures":
            text = "\n".join([_FORMAT, *map(signature, documents)])
        case "names":
            text = ", ".join(d["name"] for d in documents)
        case "none":
            return []
    return [{"role": "system", "content": text}]


def signature(document: dict[str, Any]) -> str:
    """Return a function's signature, `name(argument: type, optional: type = ...)`."""
    parameters = document["parameters"]
    required = set(parameters.get("required", []))
    parts = [
        f"{name}: {about.get('type', 'any')}{'' if name in required else ' = ...'}"
        for name, about in parameters.get("properties", {}).items()
    ]
    return f"{document['name']}({', '.join(parts)})"


def shorten(result: str, characters: int | None) -> str:
    """Return a call's result, cut off after so many characters with a mark that says how many are missing."""
    if characters is None or len(result) <= characters:
        return result
    return f"{result[:characters]}... ({len(result) - characters} more characters)"


def message_of(calls: Sequence[str]) -> str:
    """Return the policy's message that makes these calls; without any, the message that ends a turn."""
    return f"[{', '.join(calls)}]" if calls else DONE
