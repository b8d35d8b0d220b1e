"""`tokens_between` finds what stands between two sampled messages of a dialogue, so that it goes on in sampled tokens.

A dialogue that is rendered anew for every message is encoded from its text, and a text does not tell the tokens that it
was sampled as: a message that was cut off would get an end that the policy never drew, and others might be divided into
other tokens. A trajectory must hold the states and actions of the sampling. So it goes on behind its own tokens with
what the chat template writes after the message: its end where it was cut off, the answers of the environment, and
what opens the next message.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from shiqrun.batching.chat_template import Conversation, render
from shiqrun.batching.encode import tokens_through_last_action
from shiqrun.batching.special_tokens import special_ids


@dataclass(frozen=True)
class Between:
    """What stands between two messages of the policy, in tokens.

    Attributes:
        closing: what ends the message, for one that was cut off.
        following: all that follows, up to what opens the next message.
    """

    closing: list[int]
    following: list[int]


def tokens_between(talks: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[Between | None]:
    """Return what stands behind the last assistant message of each conversation, as the chat template writes it.

    None where the template rewrites the conversation when it goes on, or where tokens merge across the end of the
    message: then there are no tokens of what follows alone.

    Args:
        talks: conversations with an assistant message, which other messages follow.
        tokenizer: with a chat template.
    """
    last = [max(i for i, m in enumerate(talk.messages) if m["role"] == "assistant") for talk in talks]
    heads = [talk.before(i + 1) for talk, i in zip(talks, last, strict=True)]
    wholes = render([*talks], tokenizer, head=True).ids
    through = tokens_through_last_action(heads, tokenizer)
    special, eos = special_ids(tokenizer), tokenizer.eos_token_id
    found: list[Between | None] = []
    for part, whole in zip(through, wholes, strict=True):
        if part[-1] == eos and part != whole[: len(part)]:  # the template closes no message, only the last is closed
            part = part[:-1]
        stable = part == whole[: len(part)]
        closing = part[-1:] if part[-1] in special else []
        found.append(Between(closing, whole[len(part) :]) if stable else None)
    return found
