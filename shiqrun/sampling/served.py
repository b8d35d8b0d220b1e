"""A served model is a language model behind an OpenAI-compatible HTTP server that completes prompts of token ids.

The answers' tokens and log-probabilities are asked for in the form of vLLM, which other servers know too:
`return_tokens_as_token_ids` makes each token `token_id:N`, and `prompt_logprobs` scores tokens that are given.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.sampling.generate import Completion
from shiqrun.util.json_http import JsonServer, Refusal

PREFIX = "token_id:"
"""What an answer's tokens begin with."""
PLAIN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Settings that leave a distribution alone: a server takes others from the model's generation config."""
SAYS_TOKENS = {
    "logprobs": 0,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
    "add_special_tokens": False,
}
"""Settings by which a server says tokens and their log-probabilities."""
MOST_STOPS = 4
"""Texts that end a completion, of which OpenAI's API takes no more."""
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Asked:
    """`Asked` is a prompt of which a server is to sample completions.

    Attributes:
        tokens: `[T]` of the prompt.
        count: number of completions.
        temperature: of the softmax; 0 takes the most likely token.
        seed: of the server's random numbers.
    """

    tokens: np.ndarray
    count: int
    temperature: float
    seed: int


class ServedModel:
    """A served model completes prompts and scores tokens, several requests at a time.

    Args:
        server: to ask.
        name: of the model there.
        concurrent: number of requests that are on their way at the same time.
    """

    def __init__(self, server: JsonServer, name: str, *, concurrent: int) -> None:
        self.server, self.name, self.concurrent = server, name, concurrent
        self.says_text: bool | None = None  # unknown until a server may say text alone

    def complete(
        self,
        asked: Sequence[Asked],
        *,
        stop: Sequence[int],
        max_new_tokens: int,
        top_p: float,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[list[Completion]]:
        """Sample completions of each prompt, in the order of the prompts.

        Their `logp` is what the server says of each token; which distribution that is of depends on how it was started.

        Args:
            asked: prompts.
            stop: tokens that end a completion.
            max_new_tokens: largest number of tokens of a completion.
            top_p: tokens are sampled from the smallest set with at least this probability.
            tokenizer: of the model, for a server that says text alone: its completions are tokenised here, and their
                `logp` is not a number; None to refuse such a server.

        Raises:
            Unreachable: the server gave no answer.
            Refusal: it refused a request.
            ValueError: its answer has no token ids or no log-probabilities, and there is no tokenizer.
        """
        common: dict[str, Any] = {"model": self.name, "max_tokens": max_new_tokens, "top_p": top_p}
        if tokenizer is not None and self.says_text is None:
            self.says_text = self._says_text(
                [replace(one, count=1) for one in asked[:1]], {**common, "max_tokens": 1}, stop
            )
        if self.says_text and tokenizer is not None:
            return self._each(lambda item: self._texts(item, common, stop, tokenizer), asked)
        return self._each(lambda item: self._tokens(item, common, stop), asked)

    def _says_text(self, asked: Sequence[Asked], common: dict[str, Any], stop: Sequence[int]) -> bool:
        """Return whether the server says text alone: it refuses to say tokens, or does not say them."""
        try:
            self._each(lambda item: self._tokens(item, common, stop), asked)
        except ValueError:
            return True
        except Refusal as refusal:
            if refusal.status not in (400, 422):
                raise
            return True
        return False

    def _ask(self, item: Asked, content: dict[str, Any]) -> list[dict[str, Any]]:
        prompt = {"prompt": item.tokens.tolist(), "n": item.count, "temperature": item.temperature, "seed": item.seed}
        answer = self.server.post("/v1/completions", {**content, **prompt})
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != item.count:
            raise ValueError(f"{len(choices)} completions, expected {item.count}")
        return choices

    def _tokens(self, item: Asked, common: dict[str, Any], stop: Sequence[int]) -> list[Completion]:
        ends = {"stop_token_ids": list(stop), "ignore_eos": True}  # what ends a completion is in `stop` alone
        choices = self._ask(item, {**common, **ends, **SAYS_TOKENS, **PLAIN})
        return [_completion(choice, stop) for choice in choices]

    def _texts(
        self, item: Asked, common: dict[str, Any], stop: Sequence[int], tokenizer: PreTrainedTokenizerBase
    ) -> list[Completion]:
        words = [str(tokenizer.decode([token])) for token in stop][:MOST_STOPS]
        return [_tokenised(choice, stop, tokenizer) for choice in self._ask(item, {**common, "stop": words})]

    def score(self, rows: Sequence[tuple[np.ndarray, int]]) -> list[np.ndarray]:
        """Return the log-probabilities of given tokens at temperature 1, nats, `[A]` float32 each.

        Args:
            rows: tokens `[T]`, and how many of them are the prompt: the others are scored.

        Raises:
            Unreachable, Refusal: as `complete`.
            ValueError: the server's answer has no log-probabilities of the prompt.
        """

        def one(row: tuple[np.ndarray, int]) -> np.ndarray:
            tokens, start = row
            asked = {"model": self.name, "prompt": tokens.tolist(), "max_tokens": 1, "temperature": 0.0}
            answer = self.server.post("/v1/completions", {**asked, "prompt_logprobs": 0, "add_special_tokens": False})
            found = answer["choices"][0].get("prompt_logprobs")
            if found is None or len(found) != len(tokens):
                raise ValueError("no log-probabilities of the prompt (prompt_logprobs) in its answer")
            here = zip(tokens[start:].tolist(), found[start:], strict=True)
            return np.array([said[str(token)]["logprob"] for token, said in here], np.float32)

        return self._each(one, rows)

    def _each(self, work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """Return the results of the work on each item, done by several threads; the first error ends all."""
        if not items:
            return []
        with ThreadPoolExecutor(min(self.concurrent, len(items)), thread_name_prefix="shiqrun-served") as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _completion(choice: dict[str, Any], stop: Iterable[int]) -> Completion:
    """Return a choice of a server's answer as a completion."""
    said = choice.get("logprobs") or {}
    words, logp = said.get("tokens") or [], said.get("token_logprobs") or []
    if not words or len(words) != len(logp) or not all(str(word).startswith(PREFIX) for word in words):
        raise ValueError("no token ids with log-probabilities (return_tokens_as_token_ids) in its answer")
    tokens = np.array([int(word.removeprefix(PREFIX)) for word in words], np.int64)
    return Completion(tokens, int(tokens[-1]) in set(stop), np.array(logp, np.float32))


def _tokenised(choice: dict[str, Any], stop: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    """Return a choice of text alone as a completion in the tokenizer's tokens, at least one."""
    ended = choice.get("finish_reason") == "stop"
    tokens = [*tokenizer(choice["text"], add_special_tokens=False)["input_ids"], *(stop[:1] if ended else ())]
    if not tokens:
        raise ValueError("a completion without text that was cut off")
    return Completion(np.array(tokens, np.int64), ended, np.full(len(tokens), np.nan, np.float32))


def served_names(server: JsonServer) -> list[dict[str, Any]]:
    """Return what a server says of each of its models: `id`, and where it knows them `max_model_len` and `parent`.

    Raises:
        Unreachable, Refusal: as `JsonServer.post`.
        Refusal: also where the answer is no list of models.
    """
    answer = server.get("/v1/models")
    found = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise Refusal(200, "no list of models")
    return [model for model in found if isinstance(model, dict) and "id" in model]
