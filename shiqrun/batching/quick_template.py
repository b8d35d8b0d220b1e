"""`QuickTemplate` renders and tokenizes many chats at once as transformers does, with less work for each.

Contents are filled into what the chat template writes around them (`template_texts.py`), and words are tokenized once
(`word_tokens.py`). It is used where that is known to give the same tokens; the first chats are read both ways.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from shiqrun.batching.template_texts import TemplateTexts
from shiqrun.batching.word_tokens import Cut, WordTokens, can_be_cut
from shiqrun.types import Message

log = logging.getLogger("shiqrun")
Rendered = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and (start, end) of each run of tokens that the template marks as generated."""
COMPARED = 32
"""Chats of each kind that are read both ways."""


class QuickTemplate:
    """A `QuickTemplate` gives the tokens of chats, and those that the template marks, as `apply_chat_template` does.

    Args:
        tokenizer: one that `can_be_cut`, with a chat template; neither may change while this is used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._texts, self._words = TemplateTexts(tokenizer), WordTokens(tokenizer)
        self._left = dict.fromkeys(((head, marks) for head in (False, True) for marks in (False, True)), COMPARED)
        self._trusted = True

    def rendered(self, chats: Sequence[Sequence[Message]], *, head: bool, marks: bool) -> list[Rendered | None]:
        """Return the tokens and marked runs of chats without tools; None for those that transformers must read.

        Args:
            chats: messages as the template gets them.
            head: the generation prompt stands at the end.
            marks: whether runs are asked for; else they are empty.
        """
        if not self._trusted:
            return [None] * len(chats)
        try:
            texts = self._texts.texts(chats, head=head, marks=marks)
            shared = [spans[0][0] if spans else len(text) if head else 0 for text, spans in texts]
            ids = self._words.ids([text for text, _ in texts], shared)
        except Exception:  # of a template, or of a tokenizer without a token for a word; transformers says which
            return [None] * len(chats)
        found = zip(texts, *ids, strict=True)
        return [self._marked(spans, parts, ids) for (_, spans), parts, ids in found]

    def _marked(self, spans: Sequence[tuple[int, int]], parts: Cut, ids: list[int]) -> Rendered | None:
        """Return tokens and runs; None where the runs of transformers may be others than those of each mark alone."""
        if not spans:
            return ids, []
        runs = [self._words.run(parts, ids, start, end) if start < end else None for start, end in spans]
        made = [run for run in runs if run is not None]
        apart = len(made) == len(runs) and all(before[1] < after[0] for before, after in pairwise(made))
        return (ids, made) if apart else None

    def agrees(self, found: Sequence[Rendered | None], expected: Sequence[Rendered]) -> bool:
        """Return whether what was found is what transformers gives; it is used for all chats from here on if not."""
        self._trusted = list(found) == list(expected)
        if not self._trusted:
            log.debug("the chat template or tokenizer is not as the quick reading expects; transformers reads all rows")
        return self._trusted

    def to_compare(self, most: int, *, head: bool, marks: bool) -> int:
        """Return how many of the next chats are to be compared, at most `most`, and count them as compared."""
        count = min(most, self._left[head, marks])
        self._left[head, marks] -= count
        return count


def quick_template(tokenizer: PreTrainedTokenizerBase) -> QuickTemplate | None:
    """Return a quick template of a tokenizer, or None where only transformers is known to read it rightly."""
    if not tokenizer.chat_template or not can_be_cut(tokenizer):
        return None
    try:
        return QuickTemplate(tokenizer)
    except ValueError:  # of several named templates none is the default; transformers says so, with the row
        return None
