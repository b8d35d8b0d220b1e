"""`as_template_takes` gives a chat's tool calls their arguments as its template reads them: objects or JSON texts."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from shiqrun.types import Message


def as_template_takes(chat: list[Message], tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[Message]:
    """Return a chat with the arguments of its tool calls as objects, or as JSON texts where the template joins texts.

    What a chat needs does not depend on the chats beside it.

    Args:
        chat: its calls have objects as arguments.
        tokenizer: with a chat template.
        options: of `apply_chat_template`.
    """
    try:
        tokenizer.apply_chat_template([chat], **options)
    except TypeError:
        return [_with_text_arguments(m) for m in chat]
    return chat


def _with_text_arguments(message: Message) -> Message:
    """Return a message whose tool calls have their arguments as JSON texts."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    named = [(call, call.get("function", call)) for call in calls]
    texts = [(call, {**f, "arguments": json.dumps(f.get("arguments", {}), ensure_ascii=False)}) for call, f in named]
    return {**message, "tool_calls": [{**call, "function": f} if "function" in call else f for call, f in texts]}
