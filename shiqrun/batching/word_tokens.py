"""`WordTokens` tokenizes texts word by word, so that a word is tokenized once however often it occurs.

A text is cut before each single space between two characters that are no white space, and the tokens of a text are
those of its parts. That holds where whatever a tokenizer does before its model never looks across such a cut, which
`can_be_cut` knows of tokenizers that divide texts at white space, and of the byte-level ones of most models: in their
patterns (`PATTERNS`) a space is the first character of a match or one of white space alone, and the only look-ahead
asks what follows white space. All other tokenizers read whole texts.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from shiqrun.batching.marked_runs import behind_token

_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
PATTERNS = frozenset({
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    _SUFFIXES + "|" + _START + r"\p{L}+|\p{N}{1,3}" + _REST,  # GPT-4, Llama 3
    _SUFFIXES + "|" + _START + r"\p{L}+|\p{N}" + _REST,  # Qwen 2
    f"{_START}{_UPPER}*{_LOWER}+{_SUFFIXES}?|{_START}{_UPPER}+{_LOWER}*{_SUFFIXES}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # GPT-4o
})  # fmt: skip
"""Patterns by which tokenizers divide a text into words."""
CUT = re.compile(r" (?<=\S )(?=\S)")
"""The space behind a cut; Python counts more characters as white space than any tokenizer, so that less is cut."""
CLOSE = re.compile(r" (?:\s|$)|\s ")
"""A space that stands beside white space or at the end of a text; without one, every space is behind a cut."""
LARGEST_MEMORY = 1 << 16
"""Words that are remembered."""


def can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokens of a text are those of its parts, wherever `CUT` divides it."""
    if not tokenizer.is_fast or not type(tokenizer).__module__.startswith("transformers."):
        return False  # a class of the user's own may do anything
    backend = tokenizer.backend_tokenizer
    if getattr(backend.model, "dropout", None):
        return False
    if any(t.lstrip or t.rstrip or t.single_word or re.search(r"\S ", t.content) for t in _added(tokenizer)):
        return False
    if any(step["type"] != "NFC" for step in _steps(backend.normalizer)):
        return False
    if any(step.get("trim_offsets") and step.get("add_prefix_space") for step in _steps(backend.post_processor)):
        return False
    kinds = [*map(_kind, _steps(backend.pre_tokenizer))]
    return "words" in kinds and "unknown" not in kinds


def _added(tokenizer: PreTrainedTokenizerBase) -> Iterable[Any]:
    return tokenizer.backend_tokenizer.get_added_tokens_decoder().values()


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of each step of a normalizer, pre-tokenizer or post-processor; nothing for None."""
    if part is None:
        return
    waiting = [json.loads(part.__getstate__())]
    while waiting:
        step = waiting.pop(0)
        inner = next((step[name] for name in ("pretokenizers", "normalizers", "processors") if name in step), None)
        if inner is None:
            yield step
        else:
            waiting = [*inner, *waiting]


def _kind(step: dict[str, Any]) -> str:
    """Return "words" for a step that divides a text into words, "local" for one that sees no white space, "unknown"."""
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "words" if step["use_regex"] else "local"
    if step["type"] == "Digits":
        return "local"
    if step["type"] == "WhitespaceSplit":
        return "words"
    known = step["type"] == "Split" and step["pattern"].get("Regex") in PATTERNS
    return "words" if known and (step["behavior"], step["invert"]) == ("Isolated", False) else "unknown"


class Cut(NamedTuple):
    """A `Cut` is a text in parts, of which the beginning may be known as a whole: a prompt that several texts share.

    Attributes:
        text: the whole.
        begin: where the parts begin, 0 or the place of a cut.
        first: the first part.
        words: the others, without the space that each begins with.
        everywhere: whether every space from `begin` on is behind a cut.
    """

    text: str
    begin: int
    first: str
    words: list[str]
    everywhere: bool

    def part_of(self, at: int) -> tuple[int, int]:
        """Return the number of the part that has the character `at`, and where in the text it begins."""
        if self.everywhere:
            part = self.text.count(" ", self.begin, at + 1)
            return part, self.text.rfind(" ", self.begin, at + 1) if part else self.begin
        starts = [*accumulate((len(word) + 1 for word in self.words), initial=len(self.first))]
        part = bisect_right(starts, at - self.begin)
        return part, self.begin + (starts[part - 1] if part else 0)


def cut(text: str, begin: int = 0) -> Cut:
    """Return the parts of a text from a cut on."""
    tail = text[begin:] if begin else text
    close = _has_close(tail)
    words = CUT.split(tail) if close else tail.split(" ")
    return Cut(text, begin, words.pop(0), words, not close)


def last_cut(text: str, before: int) -> int:
    """Return the place of the last cut before a character; 0 where the last space before it is behind none."""
    at = text.rfind(" ", 0, before)
    return at if 0 < at < before - 1 and not (text[at - 1].isspace() or text[at + 1].isspace()) else 0


def _has_close(text: str) -> bool:
    """Return whether a text has a space as `CLOSE` finds it."""
    if not text.isascii() or _has_rare(text):
        return CLOSE.search(text) is not None
    return "  " in text or " \n" in text or "\n " in text or text.endswith(" ")


def _has_rare(text: str) -> bool:
    """Return whether a text has white space of ASCII beside the space and the end of a line."""
    few = "\t" in text or "\r" in text or "\v" in text or "\f" in text  # written out, which is faster than a loop
    return few or "\x1c" in text or "\x1d" in text or "\x1e" in text or "\x1f" in text


class WordTokens:
    """A `WordTokens` object gives the tokens of texts as its tokenizer does, and remembers those of words.

    Args:
        tokenizer: one that `can_be_cut`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._first: dict[str, list[int]] = {}
        self._known: dict[str, list[int]] = {}
        self._begun: dict[str, list[int]] = {}
        self._edges: dict[tuple[str, int], tuple[int | None, int]] = {}

    def ids(self, texts: Sequence[str], shared: Sequence[int]) -> tuple[list[Cut], list[list[int]]]:
        """Return each text in parts, and its token ids, without special tokens around them.

        Args:
            texts: texts.
            shared: how many characters of each text other texts may have, too.
        """
        begins = [last_cut(text, before) for text, before in zip(texts, shared, strict=True)]
        heads = [text[:begin] for text, begin in zip(texts, begins, strict=True)]
        new = [*{head for head in heads if head not in self._begun}]
        if len(self._begun) + len(new) > LARGEST_MEMORY // 16:
            self._begun, new = {}, [*set(heads)]
        self._begun |= zip(new, self._ids([cut(head) for head in new]), strict=True)
        cuts = [cut(text, begin) for text, begin in zip(texts, begins, strict=True)]
        ids = zip(heads, self._ids(cuts), strict=True)
        return cuts, [[*self._begun[head], *tail] if head else tail for head, tail in ids]

    def _ids(self, cuts: Sequence[Cut]) -> list[list[int]]:
        """Return the token ids of the parts of texts."""
        self._first = self._with(self._first, {c.first for c in cuts}, "")
        self._known = self._with(self._known, set().union(*(c.words for c in cuts)), " ")
        first, known = self._first, self._known
        return [[*first[c.first], *chain.from_iterable(map(known.__getitem__, c.words))] for c in cuts]

    def _with(self, known: dict[str, list[int]], wanted: set[str], before: str) -> dict[str, list[int]]:
        """Return the tokens by word of at least the wanted words; `before` stands before each of them."""
        new = [*(wanted - known.keys())]
        if len(known) + len(new) > LARGEST_MEMORY:
            known = {word: known[word] for word in wanted & known.keys()}
        if new:
            known |= zip(new, self._tokenized([before + word for word in new])["input_ids"], strict=True)
        return known

    def _tokenized(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)

    def run(self, cut: Cut, ids: Sequence[int], start: int, end: int) -> tuple[int, int] | None:
        """Return the (start, end) of the tokens of some characters of a text that `ids` gave last; see `encode`.

        Returns:
            None where the tokenizer finds no token at one of the ends, or the first of all at the second, or the
            characters begin before the parts.
        """
        if start < cut.begin:
            return None
        (part, at), (last, begins) = cut.part_of(start), cut.part_of(end - 1)
        token, _ = self._edge(cut, part, start - at)
        final, behind = self._edge(cut, last, end - 1 - begins)
        if token is None or final is None:
            return None
        before, through = (len(ids) - self._tokens_from(cut, number) for number in (part, last))
        return (before + token, through + behind) if through + final else None

    def _tokens_from(self, cut: Cut, part: int) -> int:
        """Return the number of tokens of a part and those behind it."""
        first = 0 if part else len(self._first[cut.first])
        return first + sum(map(len, map(self._known.__getitem__, cut.words[max(part - 1, 0) :])))

    def _edge(self, cut: Cut, number: int, at: int) -> tuple[int | None, int]:
        """Return the token of a part that has its character `at`, and the number behind those of that character."""
        part = " " + cut.words[number - 1] if number else cut.first
        if (part, at) not in self._edges:
            if len(self._edges) >= LARGEST_MEMORY:
                self._edges.clear()
            out = self._tokenized([part])
            token = out.char_to_token(0, at)
            self._edges[part, at] = token, 0 if token is None else behind_token(out, 0, token)
        return self._edges[part, at]
