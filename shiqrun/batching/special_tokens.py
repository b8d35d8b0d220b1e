"""Special tokens are those that a tokenizer's map names, and those that its file alone marks as special."""

import re
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from shiqrun.data.chats import wording
from shiqrun.types import Example


def special_token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that the tokenizer turns into a special token, named or not; the unknown token is none."""
    named = {tokenizer.eos_token, tokenizer.bos_token}
    added = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
    texts = dict.fromkeys([*tokenizer.all_special_tokens, *added])
    return [t for t in texts if t.strip() and (t != tokenizer.unk_token or t in named)]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of the special tokens, named or not; the unknown token is none, for it closes no turn."""
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    return special - ({tokenizer.unk_token_id} - ends)


class SpecialPattern(NamedTuple):
    """A `SpecialPattern` finds the text of any special token, the longest first; `first` are their first characters."""

    pattern: re.Pattern[str]
    first: frozenset[str]


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> SpecialPattern | None:
    """Return the pattern of a tokenizer; None where it has no special token."""
    texts = special_token_texts(tokenizer)
    words = sorted(map(re.escape, texts), key=len, reverse=True)
    return SpecialPattern(re.compile("|".join(words)), frozenset(t[0] for t in texts)) if words else None


def special_text(example: Example, completion: int, specials: SpecialPattern | None) -> str | None:
    """Return why a row is dropped if its text spells a special token, which the tokenizer would take it for."""
    if specials is None:
        return None
    for message in (*example.messages, *example.completions[completion]):
        text = wording(message)
        if any(char in text for char in specials.first) and (found := specials.pattern.search(text)):
            return f"the text holds the special token {found[0]}"
    return None
