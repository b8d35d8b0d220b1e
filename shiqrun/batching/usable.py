"""These functions say which completions can be encoded, and count the others by reason."""

from collections import Counter
from collections.abc import Sequence

from shiqrun.batching.special_tokens import SpecialPattern, special_text
from shiqrun.batching.stored_tokens import CUT_OFF
from shiqrun.data.chats import drop_reason
from shiqrun.data.drops import drop
from shiqrun.errors import InputError
from shiqrun.types import Example


def unusable(example: Example, completion: int, specials: SpecialPattern | None) -> str | None:
    """Return why a completion whose text would be encoded cannot be trained on, or None."""
    if example.sampled is not None and not example.sampled[completion].ended:
        return CUT_OFF  # its text would be closed by an end that was never drawn
    return drop_reason(example.completions[completion]) or special_text(example, completion, specials)


def drop_rows(rows: Sequence[tuple[Example, int]], reasons: Sequence[str | None], dropped: Counter[str]) -> None:
    """Count the completions, (example, number), for which there is a reason."""
    for (example, completion), reason in zip(rows, reasons, strict=True):
        if reason:
            drop(dropped, reason, example.source, example.completions[completion])


def expect_no_marks(rows: Sequence[tuple[Example, int]]) -> None:
    """Check that no message of a completion says that its tokens are state.

    Raises:
        InputError: one does, but everything from the first action on is trained on.
    """
    marked = next((e for e, k in rows if any(m.get("train") is False for m in e.completions[k])), None)
    if marked is not None:
        raise InputError(
            f"{marked.source}: a message says train: false, but data.train_on=response trains on everything from the "
            "first action on; use data.train_on=assistant"
        )
