"""Columns of messages keep tool schemas and calls as JSON texts, since Arrow gives all objects of a column one type."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from shiqrun.types import Message

PROMPT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
TEXTS = ("tools", "tool_calls")
"""Keys of a message whose values are stored as JSON; `data=jsonl` reads them so, too."""


def messages_array(chats: Sequence[Sequence[Message]]) -> pa.Array:
    """Return a column of chats.

    Raises:
        ValueError: messages have further keys whose values Arrow would not give back as they are.
    """
    plain = [[dict(message) for message in chat] for chat in chats]
    if all(message.keys() == {"role", "content"} for chat in plain for message in chat):
        return pa.array(plain, PROMPT)
    stored = [[{k: json.dumps(v) if k in TEXTS else v for k, v in m.items()} for m in chat] for chat in plain]
    try:
        column = pa.array(stored)
    except pa.ArrowException:
        column = None
    if column is None or messages_in(column) != plain:
        keys = sorted({key for chat in plain for message in chat for key in message} - {"role", "content", *TEXTS})
        raise ValueError(f"messages have {', '.join(keys)} beside role and content, which Parquet does not keep")
    return column


def messages_in(column: pa.Array) -> list[list[Message]]:
    """Return the chats of a column, without the keys that hold null."""
    chats = [[{k: v for k, v in m.items() if v is not None} for m in chat] for chat in column.to_pylist()]
    return [[{k: _read(k, v) for k, v in message.items()} for message in chat] for chat in chats]


def _read(key: str, value: Any) -> Any:
    return json.loads(value) if key in TEXTS and isinstance(value, str) else value
