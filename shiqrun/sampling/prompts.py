"""These functions choose the prompts to complete, in the policy's tokens, and the tokens that end a completion."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shiqrun.batching.chat_template import Conversation, render
from shiqrun.batching.encode import encode
from shiqrun.batching.prompt_identity import tokens_key
from shiqrun.batching.special_tokens import special_ids, special_token_texts
from shiqrun.data.chats import prompt_name, tools_of, wording
from shiqrun.errors import InputError
from shiqrun.rewards.reward import Answered, Bounded
from shiqrun.types import Example, Message

log = logging.getLogger("shiqrun")
SPARE = 8
"""Tokens of a reward model's context that stay free: it may tokenize a text otherwise than the policy."""


@dataclass(frozen=True)
class Prompt:
    """A `Prompt` holds a prompt to complete, as messages and in tokens.

    Attributes:
        name: 16 hexadecimal digits, equal for equal messages and tools.
        prompt_id: as the data set names it.
        messages: the prompt as a chat list.
        tokens: `[T]` int64, ending with what opens the assistant's turn.
        answer: whatever a verifier needs.
        source: file and line, for error messages.
        part: name of the data set that it is of, in a mixture of data sets.
    """

    name: str
    prompt_id: str
    messages: list[Message]
    tokens: np.ndarray
    answer: Any
    source: str
    part: str = ""

    @property
    def text(self) -> str:
        """Return the prompt as a person reads it, with the names of its tools."""
        tools = ", ".join(tool["function"]["name"] for tool in tools_of(self.messages))
        said = [f"{m['role']}: {wording({**m, 'tools': None})}" for m in self.messages]
        return "\n\n".join([f"tools: {tools}"] * bool(tools) + said)

    @property
    def key(self) -> int:
        """Return the number that seeds the sampling of the prompt's completions."""
        return int(self.name, 16)


def choose_prompts(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    number: int,
    room: int | None,
    seen: Set[str] = frozenset(),
    fits: Callable[[Prompt], bool] = lambda prompt: True,
) -> tuple[list[Prompt], Counter[str]]:
    """Choose at most `number` different prompts; count those that were left out, by reason.

    The prompts with the smallest hashes are chosen. So the choice depends on the prompts alone: runs with other seeds
    or methods complete the same prompts.

    Args:
        examples: of the split to choose from.
        tokenizer: with a chat template.
        number: most prompts to choose.
        room: most tokens of a prompt, None for any number.
        seen: names of the training prompts by text, and their keys by tokens (`tokens_key`); they are left out.
        fits: whether the reward can read a prompt with any completion.
    """
    left_out: Counter[str] = Counter()
    first: dict[str, Example] = {}
    for example in examples:
        name = prompt_name(example.messages)
        if name in seen:
            left_out["also a training prompt"] += 1
        else:
            first.setdefault(name, example)
    specials, chosen = special_token_texts(tokenizer), list[Prompt]()
    for name in sorted(first, key=lambda n: hashlib.blake2b(n.encode(), digest_size=8).digest()):
        if len(chosen) == number:
            break
        prompt = prompt_of(first[name], tokenizer)
        trained = tokens_key(prompt.tokens) in seen
        why = "also a training prompt" if trained else _misfit(prompt, specials, room, fits)
        if why is None:
            chosen.append(prompt)
        else:
            left_out[why] += 1
    return chosen, left_out


def prompt_of(example: Example, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Return an example's prompt in tokens, ending with what opens the assistant's turn."""
    talk = Conversation(list(example.messages), len(example.messages), example.source)
    tokens = np.array(render([talk], tokenizer, head=True).ids[0], np.int64)
    named = prompt_name(example.messages), example.prompt_id
    return Prompt(*named, talk.messages, tokens, example.answer, example.source, example.part)


def _misfit(prompt: Prompt, specials: Sequence[str], room: int | None, fits: Callable[[Prompt], bool]) -> str | None:
    """Return why a prompt cannot be completed, or None if it can."""
    spelled = next((word for word in specials if word in "\n".join(map(wording, prompt.messages))), None)
    if spelled is not None:
        return f"the text holds the special token {spelled}"
    if room is not None and len(prompt.tokens) > room:
        return f"longer than {room} tokens"
    return None if fits(prompt) else "too long for the reward model"


def fits_reward(reward: Any, max_new_tokens: int) -> Callable[[Prompt], bool]:
    """Return a test whether a reward model can read a prompt with any completion of at most `max_new_tokens` tokens.

    The reward model counts its own tokens. A completion may have more of them than of the policy's; the prompt, which
    both tokenize, says how many times more. A reward without a context reads everything.
    """
    context = reward.context() if isinstance(reward, Bounded) else None

    def fits(prompt: Prompt) -> bool:
        if context is None:
            return True
        (length,) = reward.lengths([Answered(prompt.messages, [{"role": "assistant", "content": ""}])])
        return length + math.ceil(max(1.0, length / len(prompt.tokens)) * max_new_tokens) + SPARE <= context

    return fits


class NoPrompts(InputError):
    """NoPrompts says that there is no prompt to complete.

    Attributes:
        left_out: number of prompts left out, by reason; empty where the split is.
    """

    def __init__(self, message: str, left_out: Counter[str] | None = None) -> None:
        super().__init__(message)
        self.left_out = left_out or Counter[str]()


def expect_prompts(prompts: Sequence[Prompt], left_out: Counter[str], max_new_tokens: int, split: str = "val") -> None:
    """Log how many prompts were left out, if there is one to complete.

    Raises:
        NoPrompts: there is none; the message counts why.
    """
    reasons = ", ".join(f"{n} {why}" for why, n in left_out.most_common()) or "the split is empty"
    if prompts:
        if left_out:
            log.info("%d prompts are completed; left out: %s", len(prompts), reasons)
        return
    what = "no prompt to answer" if split in ("train", "val") else f"no prompt of the {split} split to answer"
    raise NoPrompts(
        f"{what}: {reasons}; raise data.val_fraction, data.limit or data.max_length, or lower "
        f"eval.max_new_tokens={max_new_tokens}",
        left_out,
    )


def stop_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Return the ids of tokens that end a completion.

    They are EOS, the ends in the model's generation config, and the special token that closes the assistant's turn in
    the chat template.
    """
    own: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    word = _some_word(tokenizer)
    example = Example(
        messages=[{"role": "user", "content": word}],
        completions=[[{"role": "assistant", "content": word}]],
        rewards=None,
        prompt_id="",
    )
    special = special_ids(tokenizer)
    for turn in encode([example], tokenizer, Counter(), max_length=None):
        last = int(turn.input_ids[turn.action_index[-1]])
        ends |= {last} & special
    return sorted(int(i) for i in ends if i is not None)


def _some_word(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a word that the tokenizer knows: a closed list of words knows no other, and may lack an unknown token."""
    if type(tokenizer.backend_tokenizer.model).__name__ != "WordLevel":
        return "hello"
    special = special_ids(tokenizer) | {tokenizer.unk_token_id}
    return min(word for word, number in tokenizer.get_vocab().items() if number not in special)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token id that fills rows on the right; masks hide it."""
    return next(int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
