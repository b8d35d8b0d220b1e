"""The text of each token of a sequence, for people to read."""

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase


def pieces(ids: list[int], tokenizer: PreTrainedTokenizerBase, context: int = 8) -> Iterator[str]:
    """One text a token, whose sum is the whole; a character made of several tokens is the text of the last of them.

    Args:
        ids: tokens.
        tokenizer: that made them.
        context: tokens before a piece that are decoded with it, since a decoder may treat a beginning differently.
    """

    def text(start: int, end: int) -> str:
        return str(tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False))

    done = 0
    for end in range(1, len(ids) + 1):
        start = max(0, done - context)
        before, after = text(start, done), text(start, end)
        if after.endswith("\ufffd") and end < len(ids):
            yield ""
            continue
        yield after[len(before) :]
        done = end
