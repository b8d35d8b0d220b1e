"""`reward=model` scores completions by a reward model, a sequence classifier with one label.

The reward model reads the conversation through its own tokenizer and chat template, so the policy's may differ. The
position of its score is computed and never searched by token ids, so that a padding token that equals EOS, or none,
changes nothing.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import repeat
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from shiqrun.batching.chat_template import Conversation, expect_tools_shown, render, render_texts
from shiqrun.batching.encode import tokens_through_last_action
from shiqrun.batching.micro_batches import padded_micro_batches
from shiqrun.batching.prompt_identity import rendered_prompt_keys
from shiqrun.batching.special_tokens import special_token_texts
from shiqrun.data.chats import prompt_name
from shiqrun.errors import InputError
from shiqrun.models.reference import weights_fingerprint
from shiqrun.rewards.loading import Classifier, load_classifier
from shiqrun.rewards.provenance import Provenance
from shiqrun.rewards.reward import Answered, Progress, Reward
from shiqrun.types import Message

log = logging.getLogger("shiqrun")
UNREAD = ("_name_or_path", "transformers_version", "dtype")
"""Keys of a model config that change no score."""
PADDED = 3
"""Tokens of padding with which `_expect_agreement` checks a score."""


class RewardModel(Reward):
    """A reward model is any `AutoModelForSequenceClassification` with one label, loaded in float32 when first needed.

    The score of a model that `shiqrun train algo=reward_model` made is read at the last action, as it was trained; that
    of another decoder at the last token of the conversation; that of an encoder where its own head reads it.

    Args:
        path: a directory or a Hub id.
        center: subtracted from every score, in the model's own unit.
        scale: factor of the centred score, reward units per unit of the model.
        batch_tokens: largest number of padded tokens in a forward pass; bounds memory and changes no score.
        trust_remote_code: whether to run Python code that comes with the model.
        tools: whether the model's chat template gets the tool schemas of prompts.
    """

    right: float | None = None
    repeatable = True

    def __init__(
        self,
        *,
        path: str,
        center: float,
        scale: float,
        batch_tokens: Annotated[int, Gt(0)],
        trust_remote_code: bool,
        tools: bool = True,
    ) -> None:
        self.path = os.path.expanduser(path)
        self.center, self.scale, self.batch_tokens = center, scale, batch_tokens
        self.trust_remote_code, self.tools = trust_remote_code, tools
        self._device = torch.device("cpu")
        self._warned = self._agrees = False

    def to(self, device: torch.device) -> None:
        """Put the reward model on this device from the next score on."""
        self._device = device

    @cached_property
    def classifier(self) -> Classifier:
        """Return the reward model with its tokenizer and provenance, loaded when first needed.

        Raises:
            InputError: the path holds no reward model, or one that cannot be read.
        """
        return load_classifier(self.path, trust_remote_code=self.trust_remote_code)

    def context(self) -> int | None:
        """Return the largest number of tokens that the reward model can read, None if unknown."""
        return self.classifier.context

    def lengths(self, items: Sequence[Answered]) -> list[int]:
        """Return the number of tokens of each prompt with its completion, as the reward model reads it."""
        return [len(ids) for ids in self._tokens(items)]

    @torch.no_grad()
    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """Return the reward of each completion, scale * (score - center), reward units.

        Raises:
            InputError: a text is longer than the model's context, or a score is not finite; it names the source.
        """
        if not items:
            return []
        tokens = self._tokens(items)
        self._expect_room(items, tokens)
        self.classifier.model.to(self._device)
        self._expect_agreement(tokens[0])
        lengths = np.array([len(ids) for ids in tokens])
        batches = padded_micro_batches(lengths, [[i] for i in range(len(items))], self.batch_tokens)
        scores = np.zeros(len(items))
        for batch in progress(batches, "scores of answers"):
            scores[batch] = self._score_tokens([tokens[i] for i in batch]).double().cpu().numpy()
        odd = np.flatnonzero(~np.isfinite(scores))
        if len(odd):
            raise InputError(
                f"reward.path={self.path}: it gives {len(odd)} of {len(items)} texts a score that is no finite number, "
                f"{scores[odd[0]]} for {items[odd[0]].source or 'the first'}; its weights are damaged, or the text is"
            )
        return [float(x) for x in self.scale * (scores - self.center)]

    def fingerprint(self) -> str:
        """Return a hash of the reward model's weights, config, tokenizer and template, and of centre and scale."""
        own, digest = self.classifier, hashlib.blake2b(digest_size=16)
        settings = {k: v for k, v in own.model.config.to_dict().items() if k not in UNREAD}
        for part in (self._weights, settings, own.tokenizer_text(), own.provenance is not None):
            digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"|")
        digest.update(repr((type(own.model).__name__, float(self.center), float(self.scale))).encode())
        digest.update(b"" if self.tools else b"without tools")
        return digest.hexdigest()

    @cached_property
    def _weights(self) -> str:
        return weights_fingerprint(self.classifier.model)

    def refuse_seen(self, prompts: Iterable[Sequence[Message]]) -> None:
        """Refuse prompts on which the reward model was trained; warn once where its training prompts are unknown.

        Raises:
            InputError: the model was trained on some of the prompts.
        """
        known: Provenance | None = self.classifier.provenance
        if known is None:
            if not self._warned:
                log.warning(
                    f"reward.path={self.path}: it does not say which prompts it was trained on, so whether it saw the "
                    "ones it is to score cannot be checked"
                )
            self._warned = True
            return
        names = {prompt_name(prompt): prompt for prompt in (self._shown(p, "a prompt") for p in prompts)}
        keys = rendered_prompt_keys(names.values(), self.classifier.tokenizer) if known.tokens else repeat("")
        seen = [name for name, key in zip(names, keys, strict=False) if name in known.names or key in known.tokens]
        if seen:
            raise InputError(
                f"reward.path={self.path}: this reward model was trained on {len(seen)} of these {len(names)} prompts "
                f"(its {len(known.names)} training prompts have the fingerprint {known.fingerprint}), so its scores "
                "there say little about new answers; train one on the training split of this data set, with the same "
                "data.val_fraction, or evaluate on other prompts"
            )

    def about(self) -> dict[str, Any]:
        """Return the reward's name, path, centre, scale and fingerprint."""
        settings = {"name": "model", "path": self.path, "center": self.center, "scale": self.scale}
        return {**settings, "fingerprint": self.fingerprint()}

    def _tokens(self, items: Sequence[Answered]) -> list[list[int]]:
        own = self.classifier
        talks = [self._conversation(item) for item in items]
        if own.provenance is not None:
            return tokens_through_last_action(talks, own.tokenizer)
        if own.adds_specials:
            return [list(ids) for ids in own.tokenizer(render_texts(talks, own.tokenizer), verbose=False)["input_ids"]]
        return [list(ids) for ids in render(talks, own.tokenizer).ids]

    def _conversation(self, item: Answered) -> Conversation:
        """Return the conversation, up to the last action for a model whose score is read there."""
        answer = list(item.completion)
        if self.classifier.provenance is not None:
            while answer and answer[-1]["role"] != "assistant":
                answer.pop()
        messages = [*self._shown(item.prompt, item.source), *(answer or item.completion)]
        return Conversation([_break_special_tokens(m, self._specials) for m in messages], len(item.prompt), item.source)

    def _shown(self, prompt: Sequence[Message], source: str) -> list[Message]:
        """Return a prompt as the reward model reads it, with its tools or without.

        Raises:
            InputError: the model's chat template leaves the tools out.
        """
        if not self.tools:
            return [{key: value for key, value in message.items() if key != "tools"} for message in prompt]
        talk = Conversation(list(prompt), len(prompt), f"reward.path={self.path}: {source or 'a prompt'}")
        expect_tools_shown(talk, self.classifier.tokenizer, "reward.tools=false")
        return talk.messages

    @cached_property
    def _specials(self) -> list[str]:
        return special_token_texts(self.classifier.tokenizer)

    def _expect_room(self, items: Sequence[Answered], tokens: Sequence[Sequence[int]]) -> None:
        context = self.classifier.context
        long = [i for i, ids in enumerate(tokens) if context is not None and len(ids) > context]
        if long:
            raise InputError(
                f"reward.path={self.path}: {len(long)} of {len(items)} texts are longer than its context of {context} "
                f"tokens, first {items[long[0]].source or 'one'} with {len(tokens[long[0]])}; a cut text would get the "
                "score of another; leave such rows out with data.max_length, or take a model that reads more"
            )

    def _score_tokens(self, tokens: Sequence[Sequence[int]], further: int = 0) -> Tensor:
        """Return the model's own scores of token lists, `[B]`, padded on the right by `further` more than needed."""
        own, width = self.classifier, max(map(len, tokens)) + further
        ids = torch.tensor([[*row, *[own.pad] * (width - len(row))] for row in tokens], device=self._device)
        ends = torch.tensor([len(row) for row in tokens], device=self._device)
        mask = (torch.arange(width, device=self._device) < ends[:, None]).long()
        with torch.autocast(self._device.type, enabled=False):
            if own.head is None:
                return own.model(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
            out = own.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True)
            last = out.last_hidden_state[torch.arange(len(tokens), device=self._device), ends - 1]
            return own.head(last).squeeze(-1)

    def _expect_agreement(self, tokens: Sequence[int]) -> None:
        """Check once that our score of a padded text equals the model's own score of the text alone.

        Raises:
            InputError: the scores differ.
        """
        if self._agrees:
            return
        own, device = self.classifier, self._device
        self._warn_of_pad(tokens)
        plain = [i for i in tokens if i != own.model.config.get_text_config().pad_token_id] or list(tokens)
        alone = torch.tensor([plain], device=device)
        theirs = own.model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits.squeeze(-1)
        room = PADDED if own.context is None else own.context - len(plain)
        ours = self._score_tokens([plain], further=min(PADDED, room))
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise InputError(
                f"reward.path={self.path}: {type(own.model).__name__} scores a text alone {float(theirs):.4g} but "
                f"{float(ours):.4g} where it is padded and read by position; shiqrun cannot read its head"
            )
        self._agrees = True

    def _warn_of_pad(self, tokens: Sequence[int]) -> None:
        """Warn where texts end in the padding token, because transformers then reads the score one token earlier."""
        own = self.classifier
        pad = own.model.config.get_text_config().pad_token_id
        if own.head is not None and own.provenance is None and pad is not None and tokens[-1] == pad:
            log.warning(
                f"reward.path={self.path}: its texts end in its padding token {pad}. It is read there; the forward of "
                "transformers reads the token before. If it was trained that way, give its config another pad_token_id"
            )


def _break_special_tokens(value: Any, specials: Sequence[str]) -> Any:
    """Return a message with a space inside every text that the tokenizer would take for a special token."""
    if isinstance(value, dict):
        return {key: _break_special_tokens(part, specials) for key, part in value.items()}
    if isinstance(value, list):
        return [_break_special_tokens(part, specials) for part in value]
    for word in [word for word in specials if isinstance(value, str) and word in value]:
        value = value.replace(word, f"{word[0]} {word[1:]}")
    return value
