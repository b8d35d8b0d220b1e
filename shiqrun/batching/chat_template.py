"""Conversations are rendered by the chat template, and each turn's state is compared with what sampling would see."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

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
        """Return the indices of the messages that are the policy's turns."""
        return [i for i in range(self.prompt, len(self.messages)) if self.messages[i]["role"] == "assistant"]

    def before(self, message: int) -> "Conversation":
        """Return the conversation as it was before the message of that index."""
        return replace(self, messages=self.messages[:message])

    def key(self) -> tuple[int, ...]:
        """Return a key that is equal for conversations of the same message objects."""
        return tuple(map(id, self.messages))


def render(talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """Return `input_ids` and other outputs of the chat template for many conversations.

    Raises:
        InputError: the template refuses a conversation; the message names its row.
    """
    if not talks:
        return {"input_ids": [], "assistant_masks": []}
    options |= {"tokenizer_kwargs": {"verbose": False}}  # rows that are too long are counted, not warned of
    try:
        return tokenizer.apply_chat_template([t.messages for t in talks], tokenize=True, return_dict=True, **options)
    except Exception:
        render_texts(talks, tokenizer, add_generation_prompt=options.get("add_generation_prompt", False))
        raise


def render_texts(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> list[str]:
    """Return the text of each conversation as the chat template writes it.

    Raises:
        InputError: the template, a program that may raise anything, does so; the message names the row.
    """
    texts = []
    for talk in talks:
        try:
            text = tokenizer.apply_chat_template(
                talk.messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except MemoryError:
            raise
        except Exception as error:
            why = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            brief = " ".join(why.split())
            raise InputError(f"{talk.source}: the chat template refuses the conversation: {brief}") from error
        texts.append(str(text))
    return texts


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
