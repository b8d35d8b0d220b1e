"""Conversations are rendered by the chat template, and each turn's state is compared with what sampling would see."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from itertools import takewhile
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.call_arguments import as_template_takes
from shiqrun.batching.marked_runs import runs_of
from shiqrun.batching.quick_template import QuickTemplate, Rendered
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
        return self._turns

    @cached_property
    def _turns(self) -> list[int]:
        behind = range(self.prompt, len(self.messages))
        return [i for i in behind if trained(self.messages[i : i + 1])]

    def before(self, message: int) -> "Conversation":
        """Return the conversation as it was before the message of that index."""
        return Conversation(self.messages[:message], self.prompt, self.source)

    def key(self) -> tuple[int, ...]:
        """Return a key that is equal for conversations of the same message objects."""
        return tuple(map(id, self.messages))


class Rendering(NamedTuple):
    """A `Rendering` holds what the chat template makes of some conversations.

    Attributes:
        ids: token ids of each.
        runs: (start, end) of each run of tokens that the template marks as generated, empty where that is not asked.
    """

    ids: list[list[int]]
    runs: list[list[tuple[int, int]]]


def render(
    talks: list[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: bool = False,
    marks: bool = False,
    quick: QuickTemplate | None = None,
) -> Rendering:
    """Return the tokens that the chat template makes of many conversations, with the tools of each.

    Args:
        talks: the conversations.
        tokenizer: with a chat template.
        head: the generation prompt stands at the end.
        marks: whether the runs of generated tokens are asked for.
        quick: of the tokenizer; it reads conversations without tools where that gives the same.

    Raises:
        InputError: the template refuses a conversation or leaves out its tools; the message names its row.
    """
    found = dict(enumerate(_quickly(talks, tokenizer, quick, head, marks)))
    same: dict[str, list[int]] = {}
    for row, talk in enumerate(talks):
        if found[row] is None:
            tools = tools_of(talk.messages)  # a template shows the order of their keys, too
            same.setdefault(json.dumps(tools, default=str) if tools else "", []).append(row)
    for rows in same.values():
        found |= zip(rows, _rendered([talks[row] for row in rows], tokenizer, head=head, marks=marks), strict=True)
    whole = [one for one in found.values() if one is not None]
    return Rendering([ids for ids, _ in whole], [runs for _, runs in whole])


def _quickly(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, quick: QuickTemplate | None, head: bool, marks: bool
) -> list[Rendered | None]:
    """Return what the quick template makes of conversations, of which the first ones are compared with transformers."""
    found: list[Rendered | None] = [None] * len(talks)
    rows = [] if quick is None else [row for row, talk in enumerate(talks) if not tools_of(talk.messages)]
    if quick is None or not rows:
        return found
    read = quick.rendered([_bare(talks[row].messages) for row in rows], head=head, marks=marks)
    for row, one in zip(rows, read, strict=True):
        found[row] = one
    read_quickly = [row for row in rows if found[row] is not None]
    first = read_quickly[: quick.to_compare(len(read_quickly), head=head, marks=marks)]
    if first and not quick.agrees(
        [found[row] for row in first], _rendered([talks[row] for row in first], tokenizer, head=head, marks=marks)
    ):
        return [None] * len(talks)
    return found


def _rendered(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, *, head: bool, marks: bool
) -> list[Rendered]:
    """Return what transformers makes of conversations with the same tools."""
    options: dict[str, Any] = {"add_generation_prompt": head} | (
        {"return_assistant_tokens_mask": True} if marks else {}
    )
    options |= {"tokenizer_kwargs": {"verbose": False}}  # rows that are too long are counted, not warned of
    try:
        out = _applied(talks, tokenizer, tokenize=True, return_dict=True, **options)
    except InputError:
        raise
    except Exception:
        render_texts(talks, tokenizer, add_generation_prompt=head)
        for talk in talks:
            _expect_words(talk, tokenizer)
        raise
    return [(ids, runs_of(out, row) if marks else []) for row, ids in enumerate(out["input_ids"])]


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
        return tokenizer.apply_chat_template([as_template_takes(c, tokenizer, **options) for c in chats], **options)


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


LARGEST_MEMORY = 4096
_SHOWING: OrderedDict[bytes, None] = OrderedDict()
"""Hashes of the last chat templates with tools and roles that they are known to show."""


def _bare(messages: list[Message]) -> list[Message]:
    """Return the messages without what is no part of a message: the prompt's tools, and marks of training."""
    own = ("tools", "train")
    return [{k: v for k, v in m.items() if k not in own} if any(k in m for k in own) else m for m in messages]


def _ids(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, quick: QuickTemplate | None, *, head: bool
) -> Iterator[list[int]]:
    """Return the tokens of each conversation, with the generation prompt if `head`; equal ones are rendered once."""
    unique = {t.key(): t for t in talks}
    ids = render([*unique.values()], tokenizer, head=head, quick=quick).ids
    found = dict(zip(unique, ids, strict=True))
    return (found[t.key()] for t in talks)


def prompt_tokens(talks: list[Conversation], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Return the tokens of each prompt, ending with what opens the assistant's turn."""
    return _ids(talks, tokenizer, None, head=True)


def prefixes_of(
    talks: list[Conversation],
    wholes: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    quick: QuickTemplate | None = None,
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield for each conversation and turn the tokens that sampling sees before it, and those up to the turn's end."""
    heads = _ids([t.before(i) for t in talks for i in t.turns()], tokenizer, quick, head=True)
    inner = [t.before(i + 1) for t in talks for i in t.turns() if i + 1 < len(t.messages)]
    bodies = _ids(inner, tokenizer, quick, head=False)
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
