"""A small policy, the cached scores of its rows, and what was computed for them."""

import torch

from shiqrun.models.policy import Policy, prepare
from shiqrun.models.reference import weights_fingerprint
from shiqrun.models.reference_cache import cache_key, cached_scores
from tests.support.helpers import llama, settings

CPU = torch.device("cpu")
TOKENS = 30


def policy_of(*, autocast=None, model=None, attn_implementation=None, **options):
    made = llama(**options) if model is None else model
    return Policy(prepare(made, settings(attn_implementation=attn_implementation)), autocast=autocast)


def key_of(policy, given):
    return cache_key(policy, given, weights_fingerprint(policy.causal_lm))


def scores_of(policy, given, directory, **options):
    return cached_scores(
        policy, given, directory, **({"key": key_of(policy, given), "tokens": TOKENS, "device": CPU} | options)
    )


def plain(scores):
    return [[x.tolist() for x in row] for row in scores]


def watched(policy):
    """Rows of every batch that the policy scores from now on."""
    seen = []
    policy.register_forward_hook(lambda module, given, out: seen.append(len(given[0].input_ids)))
    return seen
