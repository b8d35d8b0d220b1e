"""An endpoint is an OpenAI-compatible server that samples completions in place of a model that is loaded here too.

It takes no weights and must serve the same model, which is checked on its first samples where it says their scores.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt
from transformers import PreTrainedTokenizerBase

from shiqrun.errors import InputError, TrainingError
from shiqrun.models.policy import Policy
from shiqrun.sampling.gap import EngineScores, measure_gap
from shiqrun.sampling.generate import Completion
from shiqrun.sampling.prompts import padding_id
from shiqrun.sampling.served import Asked, ServedModel, served_names
from shiqrun.util.json_http import JsonServer, Refusal, Unreachable

log = logging.getLogger("shiqrun")
AT_ONCE = 32
"""Most completions of a prompt that one request asks for."""
MEASURED_TOKENS, PASS_TOKENS = 2048, 2048
"""Tokens on which the endpoint is compared with the model, and those of one forward pass."""


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """`EndpointSettings` name a server that samples completions in place of the model (`conf/_endpoint.yaml`).

    Attributes:
        base_url: of an OpenAI-compatible server; None to sample here.
        model: its name there; None for the one that the server lists.
        api_key_env: environment variable with its key; nothing is sent where it is not set.
        num_concurrent: requests that are on their way at the same time.
        timeout: seconds that an answer may take, and that a server that has died may take to come back.
        max_gap: nats a token by which its log-probabilities may differ from the model's on average.
    """

    base_url: str | None
    model: str | None
    api_key_env: str | None
    num_concurrent: Annotated[int, Gt(0)]
    timeout: Annotated[float, Gt(0)]
    max_gap: Annotated[float, Gt(0)]


class Endpoint:
    """An endpoint samples completions; it is compared with the model when it samples from that for the first time.

    Args:
        settings: with a base URL.
        tokenizer: of the model.

    Raises:
        InputError: no server answers, or it has no such model.
    """

    def __init__(self, settings: EndpointSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        try:
            url = settings.base_url or ""
            server = JsonServer(url, key_env=settings.api_key_env, seconds=settings.timeout)
        except ValueError as error:
            raise InputError(f"endpoint.base_url: {error}") from error
        self._key = f"endpoint.base_url={server.url}"
        try:
            names = [str(model["id"]) for model in served_names(server)]
        except Unreachable as error:
            raise InputError(
                f"{self._key}: no server answers ({error}); start one, or leave the endpoint out"
            ) from error
        except Refusal as refusal:
            raise InputError(f"{self._key}: {self._explained(refusal)}") from refusal
        found = [name for name in names if settings.model in (None, name)]
        if len(found) != 1:
            asked = f"endpoint.model={settings.model}" if settings.model else "endpoint.model"
            raise InputError(
                f"{asked}: the server at {server.url} has {', '.join(names) or 'no model'}; name one of them"
            )
        self.served = ServedModel(server, found[0], concurrent=settings.num_concurrent)
        self._checked = False

    def _explained(self, refusal: Refusal) -> str:
        if refusal.status in (401, 403):
            variable = self.settings.api_key_env
            return f"the server wants a key ({refusal}); put it in the environment variable {variable}"
        return f"no list of models (/v1/models): {refusal}"

    def complete(
        self,
        policy: Policy,
        prompts: Sequence[np.ndarray],
        keys: Sequence[Sequence[int]],
        *,
        stop: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
    ) -> list[Completion]:
        """Sample one completion for each prompt, in the order of the prompts; see `sample_completions`.

        Args:
            policy: the model that the server is to have; it samples nothing.
            prompts: `[T]` token ids each; equal ones next to each other share requests.
            keys: whole numbers; those of the first completion in a request make the server's seed.
            stop: tokens that end a completion.
            max_new_tokens: largest number of tokens of a completion.
            temperature, top_p: of sampling.

        Raises:
            TrainingError: the server does not answer, refuses a request, or has another model.
        """
        asked: list[Asked] = []
        for _, same in groupby(range(len(prompts)), key=lambda k: prompts[k].tobytes()):
            rows = list(same)
            for k in range(0, len(rows), AT_ONCE):
                some = rows[k : k + AT_ONCE]
                asked.append(Asked(prompts[some[0]], len(some), temperature, _seed(keys[some[0]])))
        options: dict[str, Any] = {"stop": stop, "max_new_tokens": max_new_tokens, "top_p": top_p}
        found = [completion for group in self._ask(asked, options) for completion in group]
        if not self._checked and found:
            self._checked = True
            if temperature == top_p == 1:
                self._compare(policy, prompts, found)
        return found

    def _ask(self, asked: Sequence[Asked], options: dict[str, Any]) -> list[list[Completion]]:
        """Ask the server; where it does not answer, wait for it and ask once more."""
        server = self.served.server
        try:
            try:
                return self.served.complete(asked, tokenizer=self.tokenizer, **options)
            except Unreachable as error:
                wait = f"waiting up to {self.settings.timeout:g} s for it"
                log.warning("the server at %s gives no answer (%s); %s", server.url, error, wait)
                server.wait("/v1/models", self.settings.timeout)
                return self.served.complete(asked, tokenizer=self.tokenizer, **options)
        except Unreachable as error:
            raise TrainingError(
                f"{self._key}: the server gives no answer ({error}) within endpoint.timeout={self.settings.timeout:g} "
                "seconds; look at it, and start this command again"
            ) from error
        except (Refusal, ValueError, KeyError) as error:
            raise TrainingError(f"{self._key}: the server gave no completions: {error}") from error

    def _compare(self, policy: Policy, prompts: Sequence[np.ndarray], found: Sequence[Completion]) -> None:
        """Compare the server's log-probabilities of its first completions with the model's.

        Raises:
            TrainingError: they differ by more than `endpoint.max_gap`.
        """
        if self.served.says_text:
            log.warning("%s says no token ids: its text is tokenised here, and its model is not compared", self._key)
            return
        pairs = zip(prompts, found, strict=True)
        said = [EngineScores(np.concatenate([p, c.tokens]), len(p), c.logp) for p, c in pairs]
        pad = padding_id(self.tokenizer)
        gap = measure_gap(policy, said, pad=pad, tokens=PASS_TOKENS, most=MEASURED_TOKENS)
        if not gap.mean <= self.settings.max_gap:
            raise TrainingError(
                f"{self._key}: its log-probabilities differ from the model's by {gap.mean:.3g} nats a token, more than "
                f"endpoint.max_gap={self.settings.max_gap:g}; does it serve the model of this command?"
            )
        log.info("%s: its log-probabilities differ from the model's by %.2g nats a token", self._key, gap.mean)


def endpoint_of(settings: EndpointSettings, tokenizer: PreTrainedTokenizerBase) -> Endpoint | None:
    """Return the endpoint of the settings, None where they name none.

    Raises:
        InputError: as `Endpoint`.
    """
    return None if settings.base_url is None else Endpoint(settings, tokenizer)


def _seed(key: Sequence[int]) -> int:
    return int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> np.uint64(1))
