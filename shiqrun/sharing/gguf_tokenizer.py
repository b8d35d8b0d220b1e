"""`add_tokenizer` writes a BPE tokenizer, of bytes or of SentencePiece's pieces, into a GGUF file."""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from shiqrun.errors import InputError

_END = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+{_END}"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
SPLITS = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
"""llama.cpp's name of a regular expression that splits text into words before the merges."""
PIECES = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
"""How Llama 2's tokenizer marks spaces; the first word gets one, too."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
WHOLE_WORDS = ("llama-bpe",)
"""Splits for which llama.cpp takes a word that is a token as it is, whatever the merges make of it."""


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Write tokens, merges, special tokens and the chat template.

    Args:
        writer: of the GGUF file.
        tokenizer: of the policy.
        rows: of the embeddings; those beyond the tokenizer's tokens get names that no text has.

    Raises:
        InputError: it is of another kind, of which llama.cpp would not make the same tokens.
    """
    import gguf

    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in whole["added_tokens"]}
    scores = piece_scores(whole)
    split = _split(whole) if scores is None else "default"
    _expect_plain(added)
    if tokenizer.eos_token_id is None:
        raise _other("has no EOS token, which llama.cpp needs to stop")
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    if max(texts) >= rows:
        raise _other(f"has the token {max(texts)}, but the embeddings have {rows} rows")
    kinds = []
    for number in range(rows):
        special = added[number]["special"] if number in added else None
        known = gguf.TokenType.NORMAL if special is None else gguf.TokenType.USER_DEFINED
        known = gguf.TokenType.BYTE if scores is not None and BYTE.fullmatch(texts.get(number, "")) else known
        kinds.append(gguf.TokenType.CONTROL if special else known if number in texts else gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2" if scores is None else "llama")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(rows)])
    if scores is None:
        writer.add_token_merges([" ".join(merge) for merge in _merges(whole)])
    else:
        if tokenizer.unk_token_id is not None:
            kinds[tokenizer.unk_token_id] = gguf.TokenType.UNKNOWN
        writer.add_token_scores([scores.get(texts.get(number, ""), 0.0) for number in range(rows)])
        writer.add_add_space_prefix(True)
    writer.add_token_types(kinds)
    _add_special(writer, tokenizer)


def _add_special(writer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the ids of the special tokens, which of them an encoding adds, and the chat template."""
    for name in ("bos", "eos", "pad", "unk"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _merges(whole: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs that are merged, in their order; older files write a pair as one text."""
    split = (merge.split(" ") if isinstance(merge, str) else merge for merge in whole["model"]["merges"])
    return [(first, second) for first, second in split]


def piece_scores(whole: dict[str, Any]) -> dict[str, float] | None:
    """Return scores of the tokens by which llama.cpp merges as SentencePiece's BPE; None for another tokenizer.

    llama.cpp merges the two neighbours whose joined text has the highest score, whatever the two are. That is the order
    of the merges where all pairs that make one token stand together, and no pair that makes a token is left out.

    Raises:
        InputError: it is a BPE of pieces of text with another order.
    """
    model = whole["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback"):
        return None
    if whole["normalizer"] != PIECES or whole["pre_tokenizer"] is not None or model.get("ignore_merges"):
        raise _other("is BPE with byte fallback, but marks spaces otherwise than Llama 2")
    merges, vocabulary = _merges(whole), model["vocab"]
    made = [a + b for k, (a, b) in enumerate(merges) if not k or a + b != "".join(merges[k - 1])]
    pairs, special = set(merges), {token["content"] for token in whole["added_tokens"]}
    left_out = any(
        text[:k] in vocabulary and text[k:] in vocabulary and (text[:k], text[k:]) not in pairs
        for text in vocabulary
        if text not in special and not BYTE.fullmatch(text)
        for k in range(1, len(text))
    )
    if left_out or len(made) != len(set(made)):
        raise _other("is BPE with byte fallback, but merges in another order than SentencePiece")
    return {text: -float(order) for order, text in enumerate(made, 1)}


def _split(whole: dict[str, Any]) -> str:
    """Return llama.cpp's name of how a tokenizer splits text into words, from the content of its `tokenizer.json`.

    Raises:
        InputError: llama.cpp has no such split, or merges otherwise.
    """
    model, normalizer, before = whole["model"], whole["normalizer"], whole["pre_tokenizer"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise _other(f"is {model['type']}{' with byte fallback' if model.get('byte_fallback') else ''}")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _other("marks the ends of words")
    if normalizer and normalizer["type"] == "NFC":
        print("--to gguf: llama.cpp does not bring text into Unicode's form NFC, as the tokenizer does")
    elif normalizer:
        raise _other(f"normalises text by {normalizer['type']}")
    steps = before["pretokenizers"] if before and before["type"] == "Sequence" else [before] if before else []
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        raise _other("is not byte-level")
    name = _name(steps)
    if name is None:
        raise _other("splits text into words in a way that llama.cpp has no name for here")
    if bool(model.get("ignore_merges")) != (name in WHOLE_WORDS):
        raise _other(f"has ignore_merges={model.get('ignore_merges')}, unlike llama.cpp's {name}")
    return name


def _name(steps: list[dict[str, Any]]) -> str | None:
    first, last = steps[:-1], steps[-1]
    if last["use_regex"]:
        if not first:
            return "gpt-2"
        digits = len(first) == 1 and first[0]["type"] == "Digits" and first[0]["individual_digits"]
        return "smollm" if digits else None
    if (
        len(first) == 1
        and first[0]["type"] == "Split"
        and first[0]["behavior"] == "Isolated"
        and not first[0]["invert"]
    ):
        return SPLITS.get(first[0]["pattern"].get("Regex", ""))
    return None


def _expect_plain(added: dict[int, dict[str, Any]]) -> None:
    """Check that no added token takes the spaces around it, which llama.cpp does for a few models alone.

    Raises:
        InputError: one does.
    """
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _other(
                f"has the token {token['content']!r}, which takes the spaces around it or stands between words"
            )


def _other(what: str) -> InputError:
    return InputError(
        f"--to gguf: the tokenizer {what}; written are byte-level BPE that splits words like GPT-2, Llama 3, Qwen2 or "
        "SmolLM, and SentencePiece's BPE as in Llama 2; use --to merged"
    )
