"""`rows_key` names encoded rows by all that they depend on, so that equal keys mean equal rows."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

import shiqrun
from shiqrun.data.source import Source
from shiqrun.errors import InputError

FORMAT = "2"
"""The number of the layout of row files is part of every key."""
DATED = "strftime_now"
"""What a chat template calls to write the present date; rows that were rendered on another day are no more the same."""
CODE = ("data", "batching", "types.py")
"""What reads and encodes rows: a change of it gives other keys."""


def rows_key(source: Source, tokenizer: PreTrainedTokenizerBase, settings: Any, max_length: int | None) -> str | None:
    """Return a hash of data, code, tokenizer and settings, in hexadecimal digits; None where rows cannot be named.

    The data are named by the contents of their files, read anew each time: a changed file has another key whatever its
    times say.

    Args:
        source: the data set; its rows can be named if it knows its `files`.
        tokenizer: with a chat template.
        settings: a dataclass, how the data set is read and encoded.
        max_length: tokens of a trajectory, at most.

    Raises:
        InputError: a file cannot be read.
    """
    files = source.files()
    if files is None or not tokenizer.is_fast or DATED in str(tokenizer.chat_template):
        return None
    digest = hashlib.blake2b(digest_size=16)
    own = {k: v for k, v in vars(source).items() if k[0] != "_" and k != "dropped"}
    versions = FORMAT, shiqrun.__version__, transformers.__version__, tokenizers.__version__, _code()
    words = [*versions, type(source).__qualname__, own, asdict(settings), max_length, *tokenizer_words(tokenizer)]
    for file in files:
        words += [str(file), _content(file)]
    digest.update(json.dumps(words, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def tokenizer_words(tokenizer: PreTrainedTokenizerBase) -> Iterator[Any]:
    """Yield all of a tokenizer that tokens and actions depend on."""
    yield type(tokenizer).__qualname__
    yield tokenizer.backend_tokenizer.to_str()
    yield tokenizer.chat_template
    yield tokenizer.special_tokens_map
    yield sorted(tokenizer.all_special_tokens)
    yield tokenizer.split_special_tokens


def _content(file: Path) -> str:
    """Return a hash of a file's bytes."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "blake2b").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None


@cache
def _code() -> str:
    """Return a hash of the code that reads and encodes rows."""
    folder, digest = Path(shiqrun.__file__).parent, hashlib.blake2b(digest_size=16)
    for part in CODE:
        for path in sorted((folder / part).rglob("*.py")) or [folder / part]:
            digest.update(path.read_bytes())
    return digest.hexdigest()
