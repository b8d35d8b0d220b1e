"""`row_of` writes an example as a row with new rewards, which `data=jsonl` reads back as the same example."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from shiqrun.data.token_columns import token_columns
from shiqrun.types import Example

Form = Literal["pair", "single", "several"]
"""The columns of a file: chosen, rejected and their scores; or completion, reward; or completions, rewards."""


def form_of(examples: Iterable[Example]) -> Form:
    """Return the set of columns (`Form`) that can hold all examples of a file, since all rows must have the same."""
    kinds = {(example.alone, len(example.completions)) for example in examples}
    if kinds <= {(True, 2)}:
        return "pair"
    return "single" if {count for _, count in kinds} == {1} else "several"


def row_of(example: Example, rewards: Sequence[float], form: Form) -> dict[str, Any]:
    """Return an example as a row of `data=jsonl`, with new rewards and the further columns that it was read with.

    Args:
        example: of any data set.
        rewards: one number a completion, reward units; they replace the rewards of the example.
        form: of the whole file.
    """
    prompt = [{key: value for key, value in m.items() if key != "tools"} for m in example.messages]
    chats = [list(completion) for completion in example.completions]
    if any(message in prompt for chat in chats for message in chat):
        # Whole chats, so that the reader does not mistake a repeated message for the prompt
        chats = [prompt + chat for chat in chats]
    answers: dict[str, Any]
    if form == "pair":
        answers = {"chosen": chats[0], "rejected": chats[1], "score_chosen": rewards[0], "score_rejected": rewards[1]}
    elif form == "single":
        answers = {"completion": chats[0], "reward": rewards[0]}
    else:
        answers = {"completions": chats, "rewards": list(rewards)}
    tokens = token_columns(example.sampled, several=form == "several") if example.sampled else {}
    answer = {} if example.answer is None or "tests" in example.columns else {"answer": example.answer}
    tools = {"tools": list(example.tools)} if example.tools else {}
    return {"prompt": prompt, **answers, **tools, "prompt_id": example.prompt_id, **answer, **tokens, **example.columns}
