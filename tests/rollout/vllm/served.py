"""A vLLM engine in the test's own process, and the model directories that a server starts from."""

from contextlib import contextmanager

import torch

from shiqrun.models.policy import Policy, prepare
from shiqrun.rollout.settings import VllmRollouts
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.vllm.engine import VllmEngine
from tests.rollout.sampled import BASIC, TOKENIZER, Letters, policy, prompts
from tests.support.helpers import llama
from tests.support.helpers import settings as model_settings

N, EVERY = 8, 2
SERVED = {
    "temperature": [1.0, 1.0],
    "top_p": 1.0,
    "model_update_interval": EVERY,
    "samples_per_prompt": 2,
    "batch_size": 16,
    "base_url": "http://127.0.0.1:1",
    "model": None,
    "key_env": None,
    "command": None,
    "start_timeout": 5.0,
    "timeout": 5.0,
    "num_concurrent": 4,
    "weights_dir": None,
    "weight_dtype": None,
    "max_gap": 1e-4,
}


def saved(directory, of=None, tokenizer=TOKENIZER):
    """The directory, with a policy that a server can load."""
    (of or policy()).model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def other_weights(seed):
    """A policy of the same shape, and its weights as training publishes them."""
    made = policy(seed)
    return made, {name: p.detach().clone() for name, p in made.model.named_parameters()}


def with_adapter(seed=0):
    """A policy with a LoRA adapter that adds something, and the adapter's weights."""
    made = Policy(prepare(llama(len(TOKENIZER), 0, max_position_embeddings=128), model_settings(lora_r=2))).eval()
    weights = {}
    for k, (name, p) in enumerate(n for n in made.model.named_parameters() if n[1].requires_grad):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + k)) * 0.3
        weights[name] = p.detach().clone()
    return made, weights


def settings(url, **options):
    return VllmRollouts(**(BASIC | SERVED | {"base_url": url} | options))


@contextmanager
def engine(directory, url, acting=None, *, asked=None, after=0, start=None, tokenizer=TOKENIZER, **options):
    """An engine whose policy is `acting`; closed at the end."""
    made = VllmEngine(
        acting or policy(),
        tokenizer,
        asked or prompts(),
        Letters(),
        settings(url, **options),
        run_dir=directory,
        buffer=Buffer(directory / "experience", after=after),
        seed=3,
        max_steps=6,
        model=start,
        tokens=4096,
    )
    try:
        yield made
    finally:
        made.close()
