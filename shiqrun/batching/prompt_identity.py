"""Prompts are the same where the model reads the same tokens, whatever their texts or the ids that a file gives them.

A template may trim white space and a tokenizer may normalise letters, so that prompts of different text are one prompt.
Texts are compared as well (`prompt_name`): they say the same of rows that were dropped before they had tokens.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.chat_template import Conversation, render
from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.errors import InputError
from shiqrun.types import Example, Message

CHUNK = 512


def tokens_key(tokens: np.ndarray) -> str:
    """Return a hash of token ids: 32 hexadecimal digits, equal for equal tokens."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, np.int64).tobytes(), digest_size=16).hexdigest()


def prompt_key(trajectory: EncodedTrajectory) -> str:
    """Return the hash of a trajectory's prompt, the tokens before its first action."""
    return tokens_key(trajectory.input_ids[: trajectory.action_index[0]])


def rendered_prompt_keys(prompts: Iterable[Sequence[Message]], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield for each prompt what `prompt_key` gives for a trajectory that begins with it."""
    left = iter(prompts)
    while chunk := list(islice(left, CHUNK)):
        talks = [Conversation(list(prompt), len(prompt), "a prompt") for prompt in chunk]
        for ids in render(talks, tokenizer, head=True).ids:
            yield tokens_key(np.array(ids))


class Counted(Protocol):
    """`Counted` trajectories have numbers by name, as `StoredTrajectories` and `CountedTrajectories` do."""

    def numbers(self, name: str) -> np.ndarray:  # noqa: D102 - see the class
        ...

    def plain(self, name: str) -> np.ndarray:  # noqa: D102 - see the class
        ...


def expect_same_prompt(before: dict[str, tuple[str, str]], prompt_id: str, key: str, source: str) -> None:
    """Check that an id had the same prompt before, if it had one, and take note of the prompt.

    Raises:
        InputError: it had another; the message names two rows.
    """
    known, where = before.setdefault(prompt_id, (key, source))
    if key != known:
        raise InputError(
            f"{source}: prompt_id {prompt_id!r} stands for another prompt than in {where}; give each prompt an id of "
            "its own, or leave the column out"
        )


def expect_one_prompt_an_id(rows: Counted, examples: Callable[[], Iterable[Example]], tokenizer: Any) -> None:
    """Check that the rows of one `prompt_id` have the same prompt; a prompt may have several ids.

    Methods compare the completions of an id, and an id decides the side of its rows. So a wrong id would compare
    answers to different questions.

    Args:
        rows: trajectories of a split.
        examples: reads the examples of the split again, numbered as in the rows. They are read only where rows of one
            id differ before their first action, which they also do where completions begin with a user's turn.
        tokenizer: with a chat template.

    Raises:
        InputError: an id has different prompts; the message names two rows.
    """
    prompt, family = rows.numbers("prompt"), rows.numbers("family")
    pairs = np.unique(np.stack([prompt, family]), axis=1)[0]
    several = np.bincount(pairs, minlength=1) > 1
    if not len(prompt) or not several.any():
        return
    wanted = {int(n) for n in rows.plain("example")[several[prompt]]}
    before: dict[str, tuple[str, str]] = {}
    for number, example in enumerate(examples()):
        if number in wanted:
            (key,) = rendered_prompt_keys([example.messages], tokenizer)
            expect_same_prompt(before, example.prompt_id, key, example.source)
