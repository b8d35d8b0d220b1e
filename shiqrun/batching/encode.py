"""Encoding turns conversations into trajectories of tokens, and alone decides which tokens are actions.

A conversation (prompt messages, then a completion's messages) is rendered by the tokenizer's chat template; the
tokens of the completion's assistant turns are the actions, everything else is state. Three kinds of template:

* with `{% generation %}` marks: the marked tokens, and the end-of-sequence token if it follows them directly;
* without marks: by token prefix. A turn is what `template(messages up to the turn)` has beyond `template(messages
  before the turn, with generation prompt)`. It ends at its last special token (a newline behind it is not an
  action); where the template closes the last turn with none, the end-of-sequence token is appended, so that the
  policy learns to stop;
* none at all: PLAIN_TEMPLATE below.

Either way both of these prefixes must begin the whole, else the policy would be trained on other states than it
samples from: where their text does not, the template is refused; where only tokens merge across the seam (a prompt
ending in a newline before a completion beginning with some), the row is dropped. Masks come from positions alone.
A completion that comes with the tokens it was sampled as is not rendered: see `stored_tokens`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.batching.action_rewards import place_rewards
from shiqrun.batching.chat_template import Conversation, is_stable_prefix, prefixes_of, render, unstable_template_error
from shiqrun.batching.quick_template import QuickTemplate
from shiqrun.batching.special_tokens import special_ids, special_pattern
from shiqrun.batching.stored_tokens import Spans, StoredTokens
from shiqrun.batching.usable import drop_rows, expect_no_marks, unusable
from shiqrun.data.chats import expect_calls, expect_reasoning
from shiqrun.data.drops import drop
from shiqrun.errors import InputError
from shiqrun.types import Example

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ 'Tools: ' }}{{ tools | tojson }}{{ '\n\n' }}{% endif %}"
    "{% for m in messages %}{{ '' if loop.first else '\n\n' }}{{ m.role | capitalize }}:"
    "{% if m.role == 'assistant' %}{% generation %} {{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ eos_token }}{% endgeneration %}"
    "{% else %} {{ m.content }}{% endif %}{% endfor %}"
    # in an expression: transformers trims a literal newline behind a block
    "{% if add_generation_prompt %}{{ '\n\n' if messages else '' }}Assistant:{% endif %}"
)
"""For tokenizers without a chat template: `User: ...`, blank line, `Assistant: ...<eos>`; tools and calls as JSON."""

TrainOn = Literal["assistant", "response"]
CHUNK = 512
MERGED = "prompt and completion share a token"
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class EncodedTrajectory:
    """An `EncodedTrajectory` holds one trajectory as token ids, with the positions and rewards of its actions.

    Attributes:
        input_ids: `[T]` int32.
        action_index: `[A]` int32, positions of the actions, increasing, at least 1.
        rewards: `[A]` float32, or None where the data has none.
        prompt_id: equal for trajectories that answer the same prompt.
        group: equal for trajectories that may be compared with each other.
        example: number of the Example in its split.
        completion: number of the completion within the Example.
        source: where it came from, for messages.
    """

    input_ids: np.ndarray
    action_index: np.ndarray
    rewards: np.ndarray | None
    prompt_id: str
    example: int
    completion: int
    source: str
    group: str


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with PLAIN_TEMPLATE set where it has no chat template."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def encode(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    dropped: Counter[str],
    *,
    max_length: int | None,
    train_on: TrainOn = "assistant",
    stable: str | None = None,
    first: int = 0,
    quick: QuickTemplate | None = None,
) -> Iterator[EncodedTrajectory]:
    """Yield the trajectories of the examples, in order; those that cannot be used are counted by reason in `dropped`.

    Args:
        examples: from a data set's `load`.
        tokenizer: a fast one with a chat template (`with_template`).
        dropped: counts "empty completion", "no actions", "longer than max_length (N tokens)" and MERGED.
        max_length: tokens; longer trajectories are dropped, never cut.
        train_on: "assistant", or "response" to make every token from the first action on an action (for `sft`).
        stable: a template, with marks, known to be prefix-stable; if it is the tokenizer's, the check is left out.
        first: number of the first example in its split.
        quick: of the tokenizer, for many examples.

    Raises:
        InputError: a template that is not prefix-stable or leaves out tool calls, or a wrong number of rewards.
    """
    flat = ((n, k, e) for n, e in enumerate(examples, first) for k in range(len(e.completions)))
    trusted, stored = _template(tokenizer) == stable, StoredTokens(tokenizer)
    specials = None if trusted else special_pattern(tokenizer)
    spans_of = partial(_spans_by(_template(tokenizer), trusted), tokenizer=tokenizer, quick=quick)
    while chunk := list(islice(flat, CHUNK)):
        drawn = stored.spans([(e, k) for _, k, e in chunk])
        reasons = [None if d else unusable(e, k, specials) for (_, k, e), d in zip(chunk, drawn, strict=True)]
        drop_rows([(e, k) for _, k, e in chunk], reasons, dropped)
        kept = [(row, d) for row, d, why in zip(chunk, drawn, reasons, strict=True) if not why]
        rendered = _rendered([(e, k) for (_, k, e), d in kept if d is None], tokenizer, spans_of, train_on)
        for (n, k, e), own in kept:
            span = own or next(rendered)
            if span is None:
                drop(dropped, MERGED, e.source, e.completions[k])
                continue
            ids, turns = span[0], [(max(start, 1), end) for start, end in span[1] if end > max(start, 1)]
            if not len(positions := _positions(turns, len(ids), train_on)):
                drop(dropped, "no actions", e.source, e.completions[k])
            elif max_length is not None and len(ids) > max_length:
                why = f"longer than max_length ({max_length} tokens)"
                drop(dropped, why, f"{e.source}, {len(ids):,} tokens", e.completions[k])
            else:
                reward = None if e.rewards is None else place_rewards(e, k, turns, positions)
                yield _trajectory(e, n, k, np.array(ids, np.int32), positions, reward)


def _trajectory(
    example: Example, number: int, completion: int, ids: np.ndarray, positions: np.ndarray, rewards: np.ndarray | None
) -> EncodedTrajectory:
    """Return the trajectory of a completion; `number` is that of the example."""
    group = f"{example.prompt_id}/{number}" if example.alone else example.prompt_id
    return EncodedTrajectory(ids, positions, rewards, example.prompt_id, number, completion, example.source, group)


def _rendered(
    rows: Sequence[tuple[Example, int]], tokenizer: PreTrainedTokenizerBase, spans_of: "SpansOf", train_on: TrainOn
) -> "Iterator[Spans | None]":
    """Yield tokens and turns of (example, number of a completion) as the chat template renders them."""
    if train_on == "response":
        expect_no_marks(rows)
    talks = [Conversation([*e.messages, *e.completions[k]], len(e.messages), e.source) for e, k in rows]
    for talk, span in zip(talks, spans_of(talks), strict=True):
        if span is not None:
            _expect_calls(talk, span[0], span[1], tokenizer)
        yield span


def _expect_calls(
    talk: Conversation, ids: list[int], turns: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    for i, (start, end) in zip(talk.turns(), turns, strict=True):
        if talk.messages[i].get("reasoning_content"):
            expect_reasoning(talk.messages[i], str(tokenizer.decode(ids)), talk.source)
        if talk.messages[i].get("tool_calls"):
            expect_calls(talk.messages[i], str(tokenizer.decode(ids[start:end])), talk.source)


def _spans_by(template: str, trusted: bool) -> "SpansOf":
    """Return the function that finds the policy's turns in conversations that this template renders."""
    if not GENERATION_MARK.search(template):
        return _prefix_spans
    return _trusted_spans if trusted else _marked_spans


SpansOf = Callable[..., Iterator[Any]]


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    return template.get("default", "") if isinstance(template, dict) else template or ""


def _trusted_spans(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, quick: QuickTemplate | None
) -> Iterator[Spans]:
    """Yield the turns as runs of marked tokens, without the assistant turns of the prompt."""
    for talk, ids, runs in zip(talks, *render(talks, tokenizer, marks=True, quick=quick), strict=True):
        spoken = [i for i, m in enumerate(talk.messages) if m["role"] == "assistant"]
        if len(runs) != len(spoken):
            raise InputError(
                f"{talk.source}: the chat template marks {len(runs)} spans of generation but the conversation has "
                f"{len(spoken)} assistant turns; merge consecutive assistant turns, or mend the template's marks"
            )
        run_of = dict(zip(spoken, runs, strict=True))
        yield ids, [_with_eos(ids, run_of[i], tokenizer.eos_token_id) for i in talk.turns()]


def _marked_spans(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, quick: QuickTemplate | None
) -> Iterator[Spans | None]:
    """Yield the turns as `_trusted_spans` does, and compare each turn's state with what sampling would see."""
    spans = [*_trusted_spans(talks, tokenizer, quick)]
    prefixes = prefixes_of(talks, [ids for ids, _ in spans], tokenizer, quick)
    for talk, (ids, turns), states in zip(talks, spans, prefixes, strict=True):
        both = [(head, through[:end]) for (_, end), (head, through) in zip(turns, states, strict=True)]
        if not all(is_stable_prefix(tokenizer, talk.source, part, ids) for parts in both for part in parts):
            yield None
            continue
        for (start, _), (head, _) in zip(turns, both, strict=True):
            if len(head) != start:  # the marks begin before or behind what the generation prompt opens
                raise unstable_template_error(tokenizer, talk.source, head, ids[:start])
        yield ids, turns


def _with_eos(ids: list[int], span: tuple[int, int], eos: int | None) -> tuple[int, int]:
    start, end = span
    return (start, end + 1) if end < len(ids) and ids[end] == eos and ids[end - 1] != eos else span


def tokens_through_last_action(talks: list[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of conversations that end with an assistant turn, up to and including its last action.

    The same as `encode`'s, but nothing is left out: an empty turn ends where the template closes it.
    """
    marked = bool(GENERATION_MARK.search(_template(tokenizer)))
    special, eos, cut = special_ids(tokenizer), tokenizer.eos_token_id, []
    for talk, ids, runs in zip(talks, *render(talks, tokenizer, marks=marked), strict=True):
        if runs and len(runs) == sum(m["role"] == "assistant" for m in talk.messages):
            cut.append(ids[: _with_eos(ids, runs[-1], eos)[1]])
            continue
        end, closed = _turn_end(ids, 0, len(ids), special, tokenizer)
        cut.append(ids[:end] + [eos] * (not closed and eos is not None and not marked))
    return cut


def _prefix_spans(
    talks: list[Conversation], tokenizer: PreTrainedTokenizerBase, quick: QuickTemplate | None
) -> Iterator[Spans | None]:
    """Yield the turns as the tokens that a template without marks adds between two of its own prefixes."""
    special = special_ids(tokenizer)
    wholes = render(talks, tokenizer, quick=quick).ids
    for talk, ids, states in zip(talks, wholes, prefixes_of(talks, wholes, tokenizer, quick), strict=True):
        whole, turns, closed = list(ids), [], True
        if not all(is_stable_prefix(tokenizer, talk.source, part, whole) for state in states for part in state):
            yield None
            continue
        for head, through in states:
            end, closed = _turn_end(whole, len(head), len(through), special, tokenizer)
            turns.append((len(head), end))
        if turns and not closed and tokenizer.eos_token_id is not None and turns[-1][1] == len(whole):
            whole.append(tokenizer.eos_token_id)
            turns[-1] = (turns[-1][0], len(whole))
        yield whole, turns


def _turn_end(
    ids: list[int], start: int, end: int, special: set[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, bool]:
    """Return (end, closed): behind the turn's last special token if only white space follows it, else `end`."""
    last = max((i for i in range(start, end) if ids[i] in special), default=None)
    if last is None or str(tokenizer.decode(ids[last + 1 : end])).strip():
        return end, False
    return last + 1, True


def _positions(turns: list[tuple[int, int]], length: int, train_on: TrainOn) -> np.ndarray:
    if train_on == "response" and turns:
        turns = [(turns[0][0], length)]
    spans = [np.arange(start, end, dtype=np.int32) for start, end in turns]
    return np.concatenate(spans) if spans else np.zeros(0, np.int32)
