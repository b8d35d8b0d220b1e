"""`runs_of` finds the tokens that a chat template marks as generated in what transformers returns."""

from itertools import groupby
from typing import Any


def runs_of(out: Any, row: int) -> list[tuple[int, int]]:
    """Return (start, end) of each run of tokens that the template marks as generated.

    `apply_chat_template` marks only the first token of a run's last character, which may have several (an emoji): a
    run goes on while tokens share characters.
    """
    runs, at = [], 0
    for value, run in groupby(out["assistant_masks"][row]):
        start, at = at, at + len(list(run))
        if value:
            runs.append((start, behind_token(out, row, at - 1)))
    return runs


def behind_token(out: Any, row: int, token: int) -> int:
    """Return the number behind the last of the tokens that follow a token and share characters with it."""
    end, length = token + 1, len(out["input_ids"][row])
    while end < length and out.token_to_chars(row, end).start < out.token_to_chars(row, end - 1).end:
        end += 1
    return end
