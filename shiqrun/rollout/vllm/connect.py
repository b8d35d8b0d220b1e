"""`connect` looks at a vLLM server before a run samples from it, and says what is wrong with it."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from shiqrun.errors import InputError
from shiqrun.rollout.settings import VllmRollouts
from shiqrun.sampling.prompts import Prompt
from shiqrun.sampling.served import Asked, ServedModel, served_names
from shiqrun.util.json_http import JsonServer, Refusal, Unreachable

log = logging.getLogger("shiqrun")
COMPARED_PROMPTS = 16
"""Prompts whose tokens are compared with the server's."""
PROBED, PROBE_TEMPERATURE, SAME = 8, 2.0, 1e-3
"""Tokens sampled to learn what log-probabilities are of, at vLLM's highest temperature, and equal numbers, nats."""
UPDATES = {
    False: ("/collective_rpc", "VLLM_SERVER_DEV_MODE=1"),
    True: ("/v1/load_lora_adapter", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"),
}
"""By whether the policy has an adapter: where a server takes weights, and how it is started to do so."""


def connect(
    server: JsonServer,
    settings: VllmRollouts,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    stop: Sequence[int],
    adapter: bool,
) -> ServedModel:
    """Return the model of a server that is there, after checking that it can sample for a run.

    Args:
        server: see `start.server_of`.
        settings: of sampling.
        tokenizer: of the policy.
        prompts: that are sampled from.
        stop: tokens that end a completion.
        adapter: whether the policy has a LoRA adapter.

    Raises:
        InputError: it is no vLLM server, has no such model, another tokenizer or too short a context, takes no weights,
            or does not say the log-probabilities that the run needs.
    """
    try:
        version = _expect_updates(server, adapter)
        model = _chosen(served_names(server), settings.model, server.url)
        _expect_room(model, prompts, settings, server.url)
        _expect_same_tokens(server, model["id"], tokenizer, prompts)
        served = ServedModel(server, model["id"], concurrent=settings.num_concurrent)
        if not settings.as_it_is:
            _expect_processed(served, prompts[0], stop)
    except Unreachable as error:
        raise InputError(f"rollout.base_url={server.url}: the server stopped to answer ({error})") from error
    except Refusal as refusal:
        raise InputError(f"rollout.base_url={server.url}: {_explained(refusal, settings)}") from refusal
    log.info("rollout: vLLM %s at %s samples from %s", version, server.url, model["id"])
    return served


def _explained(refusal: Refusal, settings: VllmRollouts) -> str:
    if refusal.status in (401, 403):
        return f"the server wants a key ({refusal}); put it in the environment variable {settings.key_env}"
    return f"the server refused what a run asks of it: {refusal}"


def _expect_updates(server: JsonServer, adapter: bool) -> str:
    """Return the version of vLLM, if the server takes new weights."""
    try:
        version = str(server.get("/version")["version"])
    except (Refusal, KeyError, TypeError):
        raise InputError(f"rollout.base_url={server.url}: no vLLM server (it has no /version)") from None
    path, how = UPDATES[adapter]
    try:
        server.post(path)
    except Refusal as refusal:
        if refusal.status == 404:
            raise InputError(
                f"rollout.base_url={server.url}: vLLM {version} there takes no weights (it has no {path}); start it "
                f"with {how}, or use a newer one"
            ) from None
        if refusal.status in (401, 403):
            raise
    return version


def _chosen(models: Sequence[dict[str, Any]], wanted: str | None, url: str) -> dict[str, Any]:
    """Return the served model of a name, or the only one that is no adapter."""
    there = [model for model in models if not model.get("parent")]
    names = ", ".join(str(model["id"]) for model in there)
    found = [model for model in there if wanted in (None, model["id"])]
    if len(found) != 1:
        what = (
            f"rollout.model={wanted}: the server at {url} has" if wanted else f"rollout.model: the server at {url} has"
        )
        raise InputError(f"{what} {names or 'no model'}; give the name of one of its models")
    return found[0]


def _expect_room(model: dict[str, Any], prompts: Sequence[Prompt], settings: VllmRollouts, url: str) -> None:
    room, longest = model.get("max_model_len"), max(prompts, key=lambda p: len(p.tokens))
    if room is not None and len(longest.tokens) + settings.max_new_tokens > room:
        raise InputError(
            f"{longest.source}: the prompt has {len(longest.tokens)} tokens, which leaves no room for "
            f"rollout.max_new_tokens={settings.max_new_tokens} in the {room} tokens of the server at {url} "
            "(--max-model-len)"
        )


def _expect_same_tokens(
    server: JsonServer, name: str, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> None:
    """Compare the server's tokens of a few prompts with the policy's.

    Raises:
        InputError: they differ: the server has another tokenizer.
    """
    for prompt in prompts[:COMPARED_PROMPTS]:
        text = str(tokenizer.decode(prompt.tokens, skip_special_tokens=False))
        ours = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        answer = server.post("/tokenize", {"model": name, "prompt": text, "add_special_tokens": False})
        theirs = answer["tokens"]
        if ours != theirs:
            pairs = enumerate(zip(ours, theirs, strict=False))
            k = next((k for k, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
            raise InputError(
                f"rollout.base_url={server.url}: {name} there has another tokenizer than the policy: of the "
                f"prompt at {prompt.source} token {k} is {theirs[k : k + 1]} there and {ours[k : k + 1]} here; "
                "serve the policy's own model"
            )


def _expect_processed(served: ServedModel, prompt: Prompt, stop: Sequence[int]) -> None:
    """Check that a server's log-probabilities are of the distribution that was sampled from.

    A server says either those or the model's own. It is told apart where both differ: at a high temperature.

    Raises:
        InputError: they are the model's own.
    """
    asked = [Asked(prompt.tokens, PROBED, PROBE_TEMPERATURE, 0)]
    (sampled,) = served.complete(asked, stop=stop, max_new_tokens=1, top_p=1.0)
    start = len(prompt.tokens)
    own = served.score([(np.concatenate([prompt.tokens, c.tokens]), start) for c in sampled])
    if all(abs(float(c.logp[0] - o[0])) < SAME for c, o in zip(sampled, own, strict=True)):
        raise InputError(
            f"rollout.base_url={served.server.url}: the server says the model's log-probabilities, not those of "
            "what it samples from; start it with --logprobs-mode processed_logprobs, or set rollout.temperature=[1,1] "
            "rollout.top_p=1"
        )
