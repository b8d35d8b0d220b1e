"""Which prompts are answered, in the tokens that the policy sees, and which tokens end an answer."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shiqrun.batching.chat_template import Talk, render
from shiqrun.batching.encode import encode, special_words
from shiqrun.data.chats import prompt_name
from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered, Bounded
from shiqrun.types import Example, Message

log = logging.getLogger("shiqrun")
SPARE = 8
"""Tokens of a reward model's context that are left free: an answer's text may be cut otherwise than it was sampled."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer.

    Attributes:
        name: 16 hexadecimal digits, equal for equal messages.
        prompt_id: the data set's.
        messages: chat list.
        tokens: `[T]` int64, with what opens the assistant's turn.
        answer: whatever a verifier needs.
        source: where it came from.
    """

    name: str
    prompt_id: str
    messages: list[Message]
    tokens: np.ndarray
    answer: Any
    source: str

    @property
    def text(self) -> str:
        """As a person reads it."""
        return "\n\n".join(f"{m['role']}: {m['content']}" for m in self.messages)

    @property
    def key(self) -> int:
        """The number that its random numbers start from."""
        return int(self.name, 16)


def tokens_key(tokens: np.ndarray) -> str:
    """32 hexadecimal digits, equal for equal tokens."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, np.int64).tobytes(), digest_size=16).hexdigest()


def choose_prompts(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    number: int,
    room: int | None,
    seen: Set[str] = frozenset(),
    fits: Callable[[Prompt], bool] = lambda prompt: True,
) -> tuple[list[Prompt], Counter[str]]:
    """At most `number` different prompts, and how many were left out, by reason.

    Which ones depends on the prompts alone (the smallest hashes), so that runs with other seeds, methods or limits on
    the training split answer the same ones.

    Args:
        examples: of the validation split.
        tokenizer: with a chat template.
        number: prompts at most.
        room: tokens that a prompt may have, None for any number.
        seen: names of training prompts, which are left out.
        fits: whether the reward can read what may become of a prompt.
    """
    left_out: Counter[str] = Counter()
    first: dict[str, Example] = {}
    for example in examples:
        name = prompt_name(example.messages)
        if name in seen:
            left_out["also a training prompt"] += 1
        else:
            first.setdefault(name, example)
    specials, chosen = special_words(tokenizer), list[Prompt]()
    for name in sorted(first, key=lambda n: hashlib.blake2b(n.encode(), digest_size=8).digest()):
        if len(chosen) == number:
            break
        prompt = prompt_of(first[name], tokenizer)
        why = _misfit(prompt, specials, room, fits)
        if why is None:
            chosen.append(prompt)
        else:
            left_out[why] += 1
    return chosen, left_out


def prompt_of(example: Example, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The example's prompt with what opens the assistant's turn."""
    talk = Talk(list(example.messages), len(example.messages), example.source)
    tokens = np.array(render([talk], tokenizer, add_generation_prompt=True)["input_ids"][0], np.int64)
    return Prompt(
        prompt_name(example.messages), example.prompt_id, talk.messages, tokens, example.answer, example.source
    )


def _misfit(prompt: Prompt, specials: Sequence[str], room: int | None, fits: Callable[[Prompt], bool]) -> str | None:
    """Why a prompt is not answered, or None."""
    spelled = next((word for word in specials if word in "\n".join(str(m["content"]) for m in prompt.messages)), None)
    if spelled is not None:
        return f"the text holds the special token {spelled}"
    if room is not None and len(prompt.tokens) > room:
        return f"longer than {room} tokens"
    return None if fits(prompt) else "too long for the reward model"


def fits_reward(reward: Any, max_new_tokens: int) -> Callable[[Prompt], bool]:
    """Whether a reward reads a prompt with any answer, by its own tokens; always, where it has no context.

    An answer may have more tokens for the reward model than for the policy: as many times more as the prompt has.
    """
    context = reward.context() if isinstance(reward, Bounded) else None

    def fits(prompt: Prompt) -> bool:
        if context is None:
            return True
        (length,) = reward.lengths([Answered(prompt.messages, [{"role": "assistant", "content": ""}])])
        return length + math.ceil(max(1.0, length / len(prompt.tokens)) * max_new_tokens) + SPARE <= context

    return fits


class NoPrompts(InputError):
    """There is no prompt to complete.

    Attributes:
        left_out: number of prompts left out, by reason; empty where the split is.
    """

    def __init__(self, message: str, left_out: Counter[str] | None = None) -> None:
        super().__init__(message)
        self.left_out = left_out or Counter[str]()


def expect_prompts(prompts: Sequence[Prompt], left_out: Counter[str], max_new_tokens: int) -> None:
    """Log how many prompts were left out, if there is one to complete.

    Raises:
        NoPrompts: there is none; the message counts why.
    """
    reasons = ", ".join(f"{n} {why}" for why, n in left_out.most_common()) or "the split is empty"
    if prompts:
        if left_out:
            log.info("%d prompts are answered; left out: %s", len(prompts), reasons)
        return
    raise NoPrompts(
        f"no prompt to answer: {reasons}; raise data.val_fraction or data.max_length, or lower "
        f"eval.max_new_tokens={max_new_tokens}",
        left_out,
    )


def stop_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Tokens that end an answer: EOS, what the model's own settings say, and what closes a turn in the template."""
    own: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    word = _some_word(tokenizer)
    example = Example(
        messages=[{"role": "user", "content": word}],
        completions=[[{"role": "assistant", "content": word}]],
        rewards=None,
        prompt_id="",
    )
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    special -= {tokenizer.unk_token_id}  # a word that the tokenizer does not know closes no turn
    for turn in encode([example], tokenizer, Counter(), max_length=None):
        last = int(turn.input_ids[turn.action_index[-1]])
        ends |= {last} & special
    return sorted(int(i) for i in ends if i is not None)


def _some_word(tokenizer: PreTrainedTokenizerBase) -> str:
    """A word that the tokenizer can read: a list of words knows no other, and may have no unknown token either."""
    if type(tokenizer.backend_tokenizer.model).__name__ != "WordLevel":
        return "hello"
    special = set(tokenizer.all_special_ids)
    return min(word for word, number in tokenizer.get_vocab().items() if number not in special)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id that fills rows; masks say where."""
    return next(int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
