"""Special tokens are those that a tokenizer's map names, and those that its file alone marks as special."""

import re

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


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return a pattern that finds the text of any special token, the longest first; None where there is none."""
    words = sorted(map(re.escape, special_token_texts(tokenizer)), key=len, reverse=True)
    return re.compile("|".join(words)) if words else None


def special_text(example: Example, completion: int, specials: re.Pattern[str] | None) -> str | None:
    """Return why a row is dropped if its text spells a special token, which the tokenizer would take it for."""
    if specials is None:
        return None
    texts = (wording(m) for m in (*example.messages, *example.completions[completion]))
    found = next(filter(None, map(specials.search, texts)), None)
    return found and f"the text holds the special token {found[0]}"
