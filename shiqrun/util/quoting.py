"""Values on a command line, whatever characters they have: in the quotes of an override, and of a shell around it."""

import re
import shlex
from pathlib import Path
from typing import Any


def as_override(value: Any) -> str:
    r"""A value, or a list of them, as an override holds it: in single quotes, `\` before what would end them."""
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value)).replace("'", r"\'")
    return f"'{text}'"


def plain(text: str) -> str:
    """The other way: the value of an override without the quotes around it, if there are any."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        return text
    mark = text[0]
    return re.sub(rf"(\\+)({mark}|\Z)", lambda m: "\\" * (len(m[1]) // 2) + m[2], text[1:-1])


def for_shell(path: Path) -> str:
    """A path after `key=` in a shell, to be read by it and as an override."""
    text = str(path)
    if shlex.quote(text) == text and "=" not in text:
        return text
    words = as_override(text)
    return shlex.quote(words) if re.search(r'["$`!]|\\(?!\')', words) else f'"{words}"'
