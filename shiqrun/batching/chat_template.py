"""Conversations in tokens, and whether what sampling would see at a turn begins what training sees."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shiqrun.errors import InputError
from shiqrun.types import Message


@dataclass(frozen=True)
class Talk:
    """A whole conversation, how many of its messages are the prompt, and where it came from."""

    messages: list[Message]
    prompt: int
    source: str

    def turns(self) -> list[int]:
        """Indices of the messages that are the policy's turns."""
        return [i for i in range(self.prompt, len(self.messages)) if self.messages[i]["role"] == "assistant"]

    def upto(self, message: int) -> "Talk":
        """The conversation before that message."""
        return replace(self, messages=self.messages[:message])

    def key(self) -> tuple[int, ...]:
        """Equal for conversations of the same message objects."""
        return tuple(map(id, self.messages))


def render(talks: list[Talk], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """`input_ids` and the like of many conversations; an error of the template names the row."""
    if not talks:
        return {"input_ids": [], "assistant_masks": []}
    options |= {"tokenizer_kwargs": {"verbose": False}}  # rows that are too long are counted, not warned of
    try:
        return tokenizer.apply_chat_template([t.messages for t in talks], tokenize=True, return_dict=True, **options)
    except TemplateError as error:
        if len(talks) > 1:
            for talk in talks:
                render([talk], tokenizer, **options)
        raise InputError(f"{talks[0].source}: the chat template refuses the conversation: {error}") from error


def _ids(talks: list[Talk], tokenizer: PreTrainedTokenizerBase, *, head: bool) -> Iterator[list[int]]:
    """Tokens of each conversation, with the generation prompt if `head`; equal prompts are rendered once."""
    unique = {t.key(): t for t in talks}
    ids = render([*unique.values()], tokenizer, add_generation_prompt=head)["input_ids"]
    found = dict(zip(unique, ids, strict=True))
    return (found[t.key()] for t in talks)


def prefixes_of(
    talks: list[Talk], wholes: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """For each of a conversation's turns, in tokens: (what sampling sees before it, the conversation up to its end)."""
    heads = _ids([t.upto(i) for t in talks for i in t.turns()], tokenizer, head=True)
    inner = [t.upto(i + 1) for t in talks for i in t.turns() if i + 1 < len(t.messages)]
    bodies = _ids(inner, tokenizer, head=False)
    for talk, whole in zip(talks, wholes, strict=True):
        yield [(next(heads), next(bodies) if i + 1 < len(talk.messages) else whole) for i in talk.turns()]


def begins(tokenizer: PreTrainedTokenizerBase, source: str, part: list[int], whole: list[int]) -> bool:
    """Whether `part` begins `whole`; False where its text does and only tokens merge behind it, else an error."""
    if part == whole[: len(part)]:
        return True
    if str(tokenizer.decode(whole)).startswith(str(tokenizer.decode(part))):
        return False
    raise unstable(tokenizer, source, part, whole)


def unstable(tokenizer: PreTrainedTokenizerBase, source: str, part: list[int], whole: list[int]) -> InputError:
    """The error that says where the conversation's text is rewritten when it goes on."""
    at = next((i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole)))
    lost, kept = tokenizer.decode(part[at : at + 8]), tokenizer.decode(whole[at : at + 8])
    return InputError(
        f"{source}: the chat template is not prefix-stable: token {at} is {lost!r} when the conversation ends there "
        f"and {kept!r} when it goes on, so the policy would be trained on other states than it samples from. "
        "Use a template with {% generation %} marks whose generation prompt opens the assistant's turn"
    )
