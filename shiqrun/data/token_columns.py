"""Columns of token ids hold the completions of a row as a policy sampled them.

A row of one completion has `input_ids`, `start` (number of prompt tokens) and `ended`, as the experience of a run has;
a row of several has `prompt_ids`, and a list in `completion_ids` and in `ended` for each completion, as the
trajectories of `shiqrun values` have. A row whose completion is an episode also has `action_spans`, the start and the
end of each of the policy's messages among `input_ids`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shiqrun.errors import InputError
from shiqrun.types import SampledTokens

SINGLE = ("input_ids", "start", "ended")
SEVERAL = ("prompt_ids", "completion_ids", "ended")
SPANS = "action_spans"


def sampled_tokens(columns: Mapping[str, Any], completions: int, place: str, *, several: bool) -> list[SampledTokens]:
    """Return the tokens of each completion of a row, or nothing where it lacks one of the columns.

    Args:
        columns: of the row.
        completions: how many the row has.
        place: file and row, for messages.
        several: whether the row has the columns of several completions.

    Raises:
        InputError: a value is of another form; the message names the column.
    """
    if any(columns.get(name) is None for name in (SEVERAL if several else SINGLE)):
        return []
    if several:
        prompt, said, ended = (columns[name] for name in SEVERAL)
        for name, values in (("completion_ids", said), ("ended", ended)):
            if not isinstance(values, list) or len(values) != completions:
                raise _wrong(place, name, f"a list of {completions} entries, one a completion")
        asked = _ids(prompt, place, "prompt_ids")
        both = zip(said, ended, strict=True)
        return [SampledTokens(asked, _ids(one, place, "completion_ids"), _flag(end, place)) for one, end in both]
    ids, start = _ids(columns["input_ids"], place, "input_ids"), columns["start"]
    if isinstance(start, bool) or not isinstance(start, int) or not 0 < start < len(ids):
        raise _wrong(place, "start", f"a number of prompt tokens from 1 to {len(ids) - 1}")
    spans = _spans(columns.get(SPANS), start, len(ids), place)
    return [SampledTokens(ids[:start], ids[start:], _flag(columns["ended"], place), spans)]


def token_columns(sampled: Sequence[SampledTokens], *, several: bool) -> dict[str, Any]:
    """Return the columns of token ids of a row with completions of one prompt, as `sampled_tokens` reads them."""
    first = sampled[0]
    if several:
        if any(t.spans is not None for t in sampled):
            return {}  # these columns tell no messages apart: the texts are encoded
        said, ended = [[*map(int, t.completion)] for t in sampled], [t.ended for t in sampled]
        return {"prompt_ids": [*map(int, first.prompt)], "completion_ids": said, "ended": ended}
    ids = [*map(int, first.prompt), *map(int, first.completion)]
    spans = {} if first.spans is None else {SPANS: [[*span] for span in first.spans]}
    return {"input_ids": ids, "start": len(first.prompt), "ended": first.ended, **spans}


def _ids(value: Any, place: str, name: str) -> list[int]:
    if not isinstance(value, list) or not value or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        raise _wrong(place, name, "token ids, a list of whole numbers")
    return value


def _spans(value: Any, start: int, end: int, place: str) -> list[tuple[int, int]] | None:
    """Return the spans of an episode's messages, in order and without overlap between two positions; None for none."""
    if value is None:
        return None
    pairs = isinstance(value, list) and all(isinstance(v, list) and [type(i) for i in v] == [int, int] for v in value)
    at = [start, *(i for span in value for i in span), end] if pairs else []
    if not at[2:] or at != sorted(at) or any(a == b for a, b in value):
        raise _wrong(place, SPANS, f"[start, end] of each assistant message, from {start} to {end} in order")
    return [(a, b) for a, b in value]


def _flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(place, "ended", "true or false, whether a stop token ended the completion")
    return value


def _wrong(place: str, name: str, expected: str) -> InputError:
    return InputError(f"{place}: column '{name}': expected {expected}; remove the column to have the text encoded")
