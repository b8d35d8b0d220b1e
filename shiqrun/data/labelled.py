"""Examples as rows of a file: what `data=jsonl` reads back as the same examples, with the rewards they are given."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from shiqrun.types import Example

Form = Literal["pair", "single", "several"]
"""Columns: chosen, rejected and their scores; completion, reward; completions, rewards."""


def form_of(examples: Iterable[Example]) -> Form:
    """The form that fits all examples of a file: its reader wants the rewards of all rows in the same columns."""
    kinds = {(example.alone, len(example.completions)) for example in examples}
    if kinds <= {(True, 2)}:
        return "pair"
    return "single" if {count for _, count in kinds} == {1} else "several"


def row_of(example: Example, rewards: Sequence[float], form: Form) -> dict[str, Any]:
    """The row of an example in the columns of `data=jsonl`, and the further columns of its own row.

    Args:
        example: of any data set.
        rewards: one number a completion, which replaces what the example has.
        form: of the whole file.
    """
    prompt = list(example.messages)
    chats = [list(completion) for completion in example.completions]
    if any(message in prompt for chat in chats for message in chat):
        chats = [prompt + chat for chat in chats]  # else the reader might take the repetition for the prompt
    answers: dict[str, Any]
    if form == "pair":
        answers = {"chosen": chats[0], "rejected": chats[1], "score_chosen": rewards[0], "score_rejected": rewards[1]}
    elif form == "single":
        answers = {"completion": chats[0], "reward": rewards[0]}
    else:
        answers = {"completions": chats, "rewards": list(rewards)}
    answer = {} if example.answer is None or "tests" in example.columns else {"answer": example.answer}
    return {"prompt": prompt, **answers, "prompt_id": example.prompt_id, **answer, **example.columns}
