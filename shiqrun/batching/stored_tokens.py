"""Completions that are stored with the tokens they were sampled as are read by these tokens instead of their text.

A text does not tell its tokens: one that was cut off would get an end that the policy never drew, and others might be
divided into other tokens.
"""

import logging
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from shiqrun.batching.chat_template import Conversation, prompt_tokens
from shiqrun.data.chats import trained
from shiqrun.types import Example, SampledTokens

log = logging.getLogger("shiqrun")
CUT_OFF = "cut off, and its tokens are of another tokenizer"
Spans = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and (start, end) of each of the policy's turns."""


def text_of_tokens(tokens: Any, ended: bool, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of a sampled completion without its stop token, special tokens and white space at both ends."""
    return str(tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)).strip()


class StoredTokens:
    """A `StoredTokens` object returns the stored tokens of completions where they are those of a tokenizer.

    They are where its chat template gives the prompt the stored tokens, and it decodes the completion to the stored
    text.

    Args:
        tokenizer: with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._told = False

    def spans(self, rows: Sequence[tuple[Example, int]]) -> list[Spans | None]:
        """Return tokens and turn of each (example, number of a completion); None where its text is to be encoded."""
        found: list[Spans | None] = [None] * len(rows)
        stored = [(i, e, e.sampled[k], k) for i, (e, k) in enumerate(rows) if e.sampled is not None]
        heads = prompt_tokens(
            [Conversation([*e.messages], len(e.messages), e.source) for _, e, _, _ in stored], self.tokenizer
        )
        for (i, example, tokens, k), head in zip(stored, heads, strict=True):
            if head == list(tokens.prompt) and self._spells(tokens, example.completions[k]):
                ids = [*tokens.prompt, *tokens.completion]
                found[i] = ids, [*(tokens.spans or [(len(head), len(ids))])]
            elif not self._told:
                self._told = True
                log.warning(
                    f"{example.source}: its stored tokens are not those of this tokenizer and chat template; such "
                    "completions are encoded from their text, and those that were cut off are left out"
                )
        return found

    def _spells(self, tokens: SampledTokens, completion: Sequence[dict[str, Any]]) -> bool:
        """Return whether the tokens are known and their text is the completion's, or each message's of an episode."""
        if max(tokens.completion) >= len(self.tokenizer):
            return False
        if tokens.spans is None:
            text = "".join(m["content"] for m in completion)
            return bool(text.strip() == text_of_tokens(tokens.completion, tokens.ended, self.tokenizer))
        said, ids = [m["content"] for m in trained(completion)], [*tokens.prompt, *tokens.completion]
        parts = [ids[start:end] for start, end in tokens.spans]
        return len(said) == len(parts) and all(map(self._says, parts, said))

    def _says(self, tokens: list[int], text: str) -> bool:
        """Return whether tokens are a message of that text; one that was cut off has no stop token."""
        return any(text_of_tokens(tokens, ended, self.tokenizer) == text.strip() for ended in (True, False))
