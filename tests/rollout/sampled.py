"""A worker of two-layer models that answers made-up prompts, and the settings of rollouts."""

import copy

import pytest

from shiqrun.models.policy import Policy
from shiqrun.rollout.settings import LocalRollouts
from shiqrun.rollout.worker import RolloutWorker
from shiqrun.sampling.prompts import prompt_of
from tests.support.helpers import CHATML, example, llama, tokenizer

TOKENIZER = tokenizer(CHATML)
BASIC = {
    "model_update_interval": 10,
    "max_staleness": None,
    "temperature": [0.1, 0.8],
    "top_p": 0.95,
    "samples_per_prompt": 1,
    "max_new_tokens": 5,
    "batch_size": 64,
    "offline": 0.5,
    "sources": {"logged": 1},
    "losses": {},
    "replay_size": 100,
    "path": None,
    "reward_timeout": 60.0,
}


def settings(**options):
    return LocalRollouts(**(BASIC | options))


def prompts(count=7):
    """The n-th asks for n letters."""
    asked = (example("x", prompt=["a" * n + "?"], prompt_id=f"p{n}", source=f"f:{n}") for n in range(1, count + 1))
    return [prompt_of(one, TOKENIZER) for one in asked]


def policy(seed=0):
    return Policy(llama(len(TOKENIZER), seed, max_position_embeddings=128)).eval().requires_grad_(False)


def weights(of):
    return {name: p.detach().clone() for name, p in of.model.named_parameters()}


class Letters:
    """A reward: minus the letters of the answer, less one for each letter of the question."""

    right = None

    def score(self, items, progress=lambda x, _: x):
        return [-float(len(item.text) + len(item.prompt[0]["content"])) for item in items]

    def about(self):
        return {"name": "letters"}


def worker(acting=None, *, reward=None, asked=None, seed=3, place=0, incarnation=0, number=0, **options):
    acting = copy.deepcopy(acting) if acting else policy()
    made = settings(**options)
    counted = {"seed": seed, "place": place, "incarnation": incarnation, "number": number}
    return RolloutWorker(acting, TOKENIZER, asked or prompts(), reward or Letters(), made, **counted)


def told(trajectories):
    """All that trajectories say but the time."""
    found = [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in vars(t).items()} for t in trajectories]
    return [one | {"time": None} for one in found]


def wanted(trajectories):
    """The same, to be compared with: log-probabilities but for what batches of other shapes round."""
    near = {name: lambda v: pytest.approx(v, abs=1e-4) for name in ("behaviour_logp", "policy_logp")}
    return [{k: near.get(k, lambda v: v)(v) for k, v in one.items()} for one in told(trajectories)]
