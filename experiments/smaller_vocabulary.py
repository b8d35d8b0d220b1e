"""`smaller` leaves out the tokens that some texts do not need, and splits those texts into the same tokens as before.

Two fifths of a small model are embeddings of words that an experiment never reads.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shiqrun.errors import InputError


def smaller(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tokenizer, list[int]]:
    """Return a tokenizer of fewer tokens, and the former number of each.

    It keeps the special tokens, the single bytes, so that any text can be written, the tokens of the texts, and every
    token on the way of the merges to them. Whatever merge made a token of the texts before is there, and no new one.

    Args:
        tokenizer: byte-level BPE.
        texts: those that are split as before.
    """
    whole = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = whole["model"]["vocab"]
    merges: list[tuple[str, str]] = [(a, b) for a, b in whole["model"]["merges"]]
    parts: dict[str, list[str]] = {}
    for a, b in merges:
        parts.setdefault(a + b, []).extend((a, b))
    kept = {token["content"] for token in whole["added_tokens"]} | {text for text in vocabulary if len(text) == 1}
    waiting = [token for encoded in tokenizer.encode_batch(list(texts)) for token in set(encoded.tokens)]
    while waiting:
        token = waiting.pop()
        if token not in kept or token in parts:
            kept.add(token)
            waiting += parts.pop(token, ())
    former = sorted(vocabulary[token] for token in kept)
    named = {number: text for text, number in vocabulary.items()}
    whole["model"]["vocab"] = numbers = {named[old]: new for new, old in enumerate(former)}
    whole["model"]["merges"] = [[a, b] for a, b in merges if {a, b, a + b} <= kept]
    for token in whole["added_tokens"]:
        token["id"] = numbers[token["content"]]
    return Tokenizer.from_str(json.dumps(whole)), former


def texts_of(path: Path) -> list[str]:
    """Return the texts of a file, of JSON lines or plain, compressed by gzip or not.

    Raises:
        InputError: it cannot be read.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            return [text for line in lines for text in _strings(_row(line))]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"--vocab-from: {path} cannot be read: {error}") from None


def _row(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
