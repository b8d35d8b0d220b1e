"""Conversations are rendered by the chat template, and each turn's state is compared with what sampling would see."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shiqrun.data.chats import tools_of, trained
from shiqrun.errors import InputError
from shiqrun.types import Message


@dataclass(frozen=True)
class Conversation:
    """A `Conversation` holds the messages of a prompt and a completion, and where they came from.

    Attributes:
        messages: the prompt's messages and the completion's.
        prompt: number of messages of the prompt.
        source: where it came from, for messages.
    """

    messages: list[Message]
    prompt: int
    source: str

    def turns(self) -> list[int]:
        """Return the indices of the messages that are the policy's turns; those marked `"train": false` are state."""
        behind = range(self.prompt, len(self.messages))
        return [i for i in behind if trained(self.messages[i : i + 1])]

    def before(self, message: int) -> "Conversation":
        """Return the conversation as it was before the message of that index."""
        return replace(self, messages=self.messages[:message])

    def key(self) -> tuple[int, ...]:
        """Return a key that is equal for conversations of the same message objects."""
        return tuple(map(id, self.messages))


def render(talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """Return `input_ids` and other outputs of the chat template for many conversations, with the tools of each.

    Raises:
        InputError: the template refuses a conversation or leaves out its tools; the message names its row.
    """
    if not talks:
        return {"input_ids": [], "assistant_masks": []}
    options |= {"tokenizer_kwargs": {"verbose": False}}  # rows that are too long are counted, not warned of
    same: dict[str, list[int]] = {}
    for row, talk in enumerate(talks):
        tools = tools_of(talk.messages)  # a template shows the order of their keys, too
        same.setdefault(json.dumps(tools, default=str) if tools else "", []).append(row)
    parts = [_rendered([talks[row] for row in rows], tokenizer, options) for rows in same.values()]
    return parts[0] if len(parts) == 1 else RenderedParts(parts, [*same.values()])


class RenderedParts:
    """`RenderedParts` joins outputs of the chat template, which takes the tools of one prompt at a time.

    Args:
        parts: the outputs.
        rows: the numbers of each part's conversations.
    """

    def __init__(self, parts: Sequence[Any], rows: Sequence[Sequence[int]]) -> None:
        found = {n: (part, place) for part, own in zip(parts, rows, strict=True) for place, n in enumerate(own)}
        self._rows = [found[n] for n in range(len(found))]
        self._known: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._known:
            self._known[name] = [part[name][place] for part, place in self._rows]
        return self._known[name]

    def token_to_chars(self, row: int, token: int) -> Any:
        """Return the characters of a row's text that a token stands for."""
        part, place = self._rows[row]
        return part.token_to_chars(place, token)


def _rendered(talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> Any:
    try:
        return _applied(talks, tokenizer, tokenize=True, return_dict=True, **options)
    except InputError:
        raise
    except Exception:
        render_texts(talks, tokenizer, add_generation_prompt=options.get("add_generation_prompt", False))
        for talk in talks:
            _expect_words(talk, tokenizer)
        raise


def _expect_words(talk: Conversation, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer has tokens for a conversation: one of whole words alone may lack some.

    Raises:
        InputError: it has none for a part.
    """
    try:
        _applied([talk], tokenizer, tokenize=True)
    except Exception as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"{talk.source}: the tokenizer has no token for a part of the conversation ({why}); "
            "that of model=tiny knows the words of the run's data alone: write the rows in these, or use another model"
        ) from error


def render_texts(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> list[str]:
    """Return the text of each conversation as the chat template writes it.

    Raises:
        InputError: the template, a program that may raise anything, does so; the message names the row.
    """
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    return [str(_named(talk, partial(_applied, [talk], tokenizer, **options))[0]) for talk in talks]


def _named(talk: Conversation, rendered: Callable[[], Any]) -> Any:
    """Return what a chat template makes of a conversation; an error that it raises names the conversation's row."""
    try:
        return rendered()
    except (MemoryError, InputError):
        raise
    except Exception as error:
        why = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        brief = " ".join(why.split())
        raise InputError(f"{talk.source}: the chat template refuses the conversation: {brief}") from error


def _applied(talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """Return what the chat template makes of conversations that have the same tools, or all of them none.

    Arguments of tool calls are objects; a template that joins them to a text gets them as JSON.
    """
    chats, tools = [_bare(talk.messages) for talk in talks], tools_of(talks[0].messages)
    if tools:
        for talk in talks:
            expect_tools_shown(talk, tokenizer)
        options |= {"tools": tools}
    try:
        return tokenizer.apply_chat_template(chats, **options)
    except TypeError:
        texts = [[_with_text_arguments(m) for m in chat] for chat in chats]
        if texts == chats:
            raise
        return tokenizer.apply_chat_template(texts, **options)


def expect_tools_shown(talk: Conversation, tokenizer: PreTrainedTokenizerBase, off: str = "data.tools=false") -> None:
    """Check that the chat template shows the tools of a prompt, once for the same tools and roles before the answer.

    Args:
        talk: a conversation, with tools or without.
        tokenizer: with a chat template.
        off: the setting that leaves tools out, for the message.

    Raises:
        InputError: the prompt is rendered as it is without tools.
    """
    tools = tools_of(talk.messages)
    if not tools:
        return
    chat = _bare(talk.messages)
    opening = [*takewhile(lambda m: m["role"] != "assistant", chat)] or chat
    given = [tokenizer.chat_template, tools, [m["role"] for m in opening]]
    key = blake2b(json.dumps(given, sort_keys=True, default=str).encode(), digest_size=16).digest()
    if key in _SHOWING:
        return
    apply = partial(tokenizer.apply_chat_template, opening, tokenize=False)
    if _named(talk, partial(apply, tools=tools)) == _named(talk, apply):
        raise InputError(
            f"{talk.source}: the chat template leaves out the tools of the prompt; use a model whose template shows "
            f"tools, write the schemas into the system message, or leave them out with {off}"
        )
    _SHOWING[key] = None
    while len(_SHOWING) > LARGEST_MEMORY:
        _SHOWING.popitem(last=False)


def _with_text_arguments(message: Message) -> Message:
    """Return a message whose tool calls have their arguments as JSON texts."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    named = [(call, call.get("function", call)) for call in calls]
    texts = [(call, {**f, "arguments": json.dumps(f.get("arguments", {}), ensure_ascii=False)}) for call, f in named]
    return {**message, "tool_calls": [{**call, "function": f} if "function" in call else f for call, f in texts]}


LARGEST_MEMORY = 4096
_SHOWING: OrderedDict[bytes, None] = OrderedDict()
"""Hashes of the last chat templates with tools and roles that they are known to show."""


def _bare(messages: list[Message]) -> list[Message]:
    """Return the messages without what is no part of a message: the prompt's tools, and marks of training."""
    return [{k: v for k, v in m.items() if k not in ("tools", "train")} for m in messages]


def _ids(talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, *, head: bool) -> Iterator[list[int]]:
    """Return the tokens of each conversation, with the generation prompt if `head`; equal ones are rendered once."""
    unique = {t.key(): t for t in talks}
    ids = render([*unique.values()], tokenizer, add_generation_prompt=head)["input_ids"]
    found = dict(zip(unique, ids, strict=True))
    return (found[t.key()] for t in talks)


def prompt_tokens(talks: list[Conversation], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Return the tokens of each prompt, ending with what opens the assistant's turn."""
    return _ids(talks, tokenizer, head=True)


def prefixes_of(
    talks: list[Conversation], wholes: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield for each conversation and turn the tokens that sampling sees before it, and those up to the turn's end."""
    heads = _ids([t.before(i) for t in talks for i in t.turns()], tokenizer, head=True)
    inner = [t.before(i + 1) for t in talks for i in t.turns() if i + 1 < len(t.messages)]
    bodies = _ids(inner, tokenizer, head=False)
    for talk, whole in zip(talks, wholes, strict=True):
        yield [(next(heads), next(bodies) if i + 1 < len(talk.messages) else whole) for i in talk.turns()]


def is_stable_prefix(tokenizer: PreTrainedTokenizerBase, source: str, part: list[int], whole: list[int]) -> bool:
    """Return whether `part` is a prefix of `whole`; False where only tokens merge across the end of `part`.

    Raises:
        InputError: the text of `part` is no prefix of the text of `whole`.
    """
    if part == whole[: len(part)]:
        return True
    if str(tokenizer.decode(whole)).startswith(str(tokenizer.decode(part))):
        return False
    raise unstable_template_error(tokenizer, source, part, whole)


def unstable_template_error(
    tokenizer: PreTrainedTokenizerBase, source: str, part: list[int], whole: list[int]
) -> InputError:
    """Return the error that says where the template rewrites the conversation's text when it continues."""
    at = next((i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole)))
    lost, kept = tokenizer.decode(part[at : at + 8]), tokenizer.decode(whole[at : at + 8])
    return InputError(
        f"{source}: the chat template is not prefix-stable: token {at} is {lost!r} when the conversation ends there "
        f"and {kept!r} when it goes on, so the policy would be trained on other states than it samples from. "
        "Use a template with {% generation %} marks whose generation prompt opens the assistant's turn"
    )
