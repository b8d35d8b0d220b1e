"""`reward=model`: a sequence classifier with one label, from a directory or the Hub, on the text of an answer.

It reads text through its own tokenizer and chat template, so the policy's may be others. Where its score is read is
decided by position and never by token ids: a padding that equals EOS, or none, changes nothing.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from shiqrun.batching.chat_template import Talk, render
from shiqrun.batching.encode import special_words, upto_last_action
from shiqrun.batching.micro_batches import padded_micro_batches
from shiqrun.data.chats import prompt_name
from shiqrun.errors import InputError
from shiqrun.models.reference import weights_fingerprint
from shiqrun.rewards.loading import Classifier, load_classifier
from shiqrun.rewards.provenance import Provenance
from shiqrun.rewards.reward import Answered, Progress, Reward
from shiqrun.types import Message

log = logging.getLogger("shiqrun")
UNREAD = ("_name_or_path", "transformers_version", "dtype")
"""Parts of a config that change no score."""
PADDED = 3
"""Tokens of padding where our reading of a model is checked."""


class RewardModel(Reward):
    """Any `AutoModelForSequenceClassification` with one label; loaded when first needed, in float32.

    A reward model that `shiqrun train algo=reward_model` made reads its score at the last action, as it was trained;
    another one at the last token of the whole conversation (a decoder), or wherever its own head does (an encoder).

    Args:
        path: a directory or a Hub id.
        center: taken from every score, in the model's own unit.
        scale: what the centred score is multiplied with.
        batch_tokens: padded tokens of one forward pass; bounds memory, changes no score.
        trust_remote_code: run Python code that comes with the model.
    """

    right: float | None = None

    def __init__(
        self, *, path: str, center: float, scale: float, batch_tokens: Annotated[int, Gt(0)], trust_remote_code: bool
    ) -> None:
        self.path = os.path.expanduser(path)
        self.center, self.scale, self.batch_tokens = center, scale, batch_tokens
        self.trust_remote_code = trust_remote_code
        self._device = torch.device("cpu")
        self._warned = self._agrees = False

    def to(self, device: torch.device) -> None:
        """Where to compute, from the next score on."""
        self._device = device

    @cached_property
    def loaded(self) -> Classifier:
        """The model, its tokenizer and what is known of it.

        Raises:
            InputError: no reward model, or one that cannot be read.
        """
        return load_classifier(self.path, trust_remote_code=self.trust_remote_code)

    def context(self) -> int | None:
        """Tokens it can read, where its config says so."""
        return self.loaded.context

    def lengths(self, items: Sequence[Answered]) -> list[int]:
        """Tokens of each item, as the reward model reads it."""
        return [len(ids) for ids in self._tokens(items)]

    @torch.no_grad()
    def score(self, items: Sequence[Answered], progress: Progress = lambda x, _: x) -> list[float]:
        """scale * (score - center) of every item.

        Raises:
            InputError: a text longer than the model's context, or a score that is not finite; it names the source.
        """
        if not items:
            return []
        tokens = self._tokens(items)
        self._expect_room(items, tokens)
        self.loaded.model.to(self._device)
        self._expect_agreement(tokens[0])
        lengths = np.array([len(ids) for ids in tokens])
        batches = padded_micro_batches(lengths, [[i] for i in range(len(items))], self.batch_tokens)
        scores = np.zeros(len(items))
        for batch in progress(batches, "scores of answers"):
            scores[batch] = self._read([tokens[i] for i in batch]).double().cpu().numpy()
        odd = np.flatnonzero(~np.isfinite(scores))
        if len(odd):
            raise InputError(
                f"reward.path={self.path}: it gives {len(odd)} of {len(items)} texts a score that is no finite number, "
                f"{scores[odd[0]]} for {items[odd[0]].source or 'the first'}; its weights are damaged, or the text is"
            )
        return [float(x) for x in self.scale * (scores - self.center)]

    def fingerprint(self) -> str:
        """A hash of weights, config, tokenizer, template, centre and scale."""
        own, digest = self.loaded, hashlib.blake2b(digest_size=16)
        settings = {k: v for k, v in own.model.config.to_dict().items() if k not in UNREAD}
        for part in (self._weights, settings, own.tokenizer_text(), own.provenance is not None):
            digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"|")
        digest.update(repr((type(own.model).__name__, float(self.center), float(self.scale))).encode())
        return digest.hexdigest()

    @cached_property
    def _weights(self) -> str:
        return weights_fingerprint(self.loaded.model)

    def refuse_seen(self, prompts: Iterable[Sequence[Message]]) -> None:
        """Nothing, if the model was trained on none of the prompts; a warning, once, where nobody knows.

        Raises:
            InputError: it was trained on some.
        """
        known: Provenance | None = self.loaded.provenance
        if known is None:
            if not self._warned:
                log.warning(
                    f"reward.path={self.path}: it does not say which prompts it was trained on, so whether it saw the "
                    "ones it is to score cannot be checked"
                )
            self._warned = True
            return
        names = {prompt_name(prompt) for prompt in prompts}
        seen = names & known.names
        if seen:
            raise InputError(
                f"reward.path={self.path}: this reward model was trained on {len(seen)} of these {len(names)} prompts "
                f"(its {len(known.names)} training prompts have the fingerprint {known.fingerprint}), so its scores "
                "there say little about new answers; train one on the training split of this data set, with the same "
                "data.val_fraction, or evaluate on other prompts"
            )

    def about(self) -> dict[str, Any]:
        """Name, path, centre, scale and fingerprint."""
        told = {"name": "model", "path": self.path, "center": self.center, "scale": self.scale}
        return {**told, "fingerprint": self.fingerprint()}

    def _tokens(self, items: Sequence[Answered]) -> list[list[int]]:
        own = self.loaded
        talks = [self._talk(item) for item in items]
        if own.provenance is not None:
            return upto_last_action(talks, own.tokenizer)
        if own.adds_specials:
            texts = [own.tokenizer.apply_chat_template(talk.messages, tokenize=False) for talk in talks]
            return [list(ids) for ids in own.tokenizer(texts, verbose=False)["input_ids"]]
        return [list(ids) for ids in render(talks, own.tokenizer)["input_ids"]]

    def _talk(self, item: Answered) -> Talk:
        """The conversation; for a model that reads the last action, up to it."""
        answer = list(item.completion)
        if self.loaded.provenance is not None:
            while answer and answer[-1]["role"] != "assistant":
                answer.pop()
        said = [*item.prompt, *(answer or item.completion)]
        return Talk([_defused(m, self._specials) for m in said], len(item.prompt), item.source)

    @cached_property
    def _specials(self) -> list[str]:
        return special_words(self.loaded.tokenizer)

    def _expect_room(self, items: Sequence[Answered], tokens: Sequence[Sequence[int]]) -> None:
        context = self.loaded.context
        long = [i for i, ids in enumerate(tokens) if context is not None and len(ids) > context]
        if long:
            raise InputError(
                f"reward.path={self.path}: {len(long)} of {len(items)} texts are longer than its context of {context} "
                f"tokens, first {items[long[0]].source or 'one'} with {len(tokens[long[0]])}; a cut text would get the "
                "score of another; leave such rows out with data.max_length, or take a model that reads more"
            )

    def _read(self, tokens: Sequence[Sequence[int]], further: int = 0) -> Tensor:
        """`[B]`, the model's own scores of token lists, padded on the right, by `further` more than they need."""
        own, width = self.loaded, max(map(len, tokens)) + further
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
        """Holds our reading of one text, padded, against the model's own of it alone, once.

        Raises:
            InputError: they differ.
        """
        if self._agrees:
            return
        own, device = self.loaded, self._device
        self._warn_of_pad(tokens)
        plain = [i for i in tokens if i != own.model.config.get_text_config().pad_token_id] or list(tokens)
        alone = torch.tensor([plain], device=device)
        theirs = own.model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits.squeeze(-1)
        room = PADDED if own.context is None else own.context - len(plain)
        ours = self._read([plain], further=min(PADDED, room))
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise InputError(
                f"reward.path={self.path}: {type(own.model).__name__} scores a text alone {float(theirs):.4g} but "
                f"{float(ours):.4g} where it is padded and read by position; shiqrun cannot read its head"
            )
        self._agrees = True

    def _warn_of_pad(self, tokens: Sequence[int]) -> None:
        """A model that was trained through `transformers` with padding that ends texts learned to read before it."""
        own = self.loaded
        pad = own.model.config.get_text_config().pad_token_id
        if own.head is not None and own.provenance is None and pad is not None and tokens[-1] == pad:
            log.warning(
                f"reward.path={self.path}: its texts end in its padding token {pad}. It is read there; the forward of "
                "transformers reads the token before. If it was trained that way, give its config another pad_token_id"
            )


def _defused(message: Message, specials: Sequence[str]) -> Message:
    """The message without a text that the tokenizer would take for one of its special tokens: a space breaks it."""
    content = message["content"]
    found = [word for word in specials if isinstance(content, str) and word in content]
    for word in found:
        content = content.replace(word, f"{word[0]} {word[1:]}")
    return {**message, "content": content} if found else message
