"""`pieces` decodes each token of a sequence to its own piece of text, for people to read."""

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase


def pieces(ids: list[int], tokenizer: PreTrainedTokenizerBase, context: int = 8) -> Iterator[str]:
    """Yield the text of each token; joined, the pieces are the text of the whole sequence.

    Where several tokens make one character, the last of them gets it and the others get empty text.

    Args:
        ids: token ids.
        tokenizer: encoded them.
        context: number of tokens before a piece that are decoded with it, because a decoder may treat the beginning of
            a text differently.
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
