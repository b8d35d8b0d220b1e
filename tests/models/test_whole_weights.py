"""Weights that ranks share, gathered for a while: what may look at them leaves them whole."""

import torch
from torch.distributed.device_mesh import init_device_mesh

from shiqrun.models.policy import Policy
from shiqrun.models.reference import FrozenReference, same_weights
from shiqrun.models.sharding import shard, whole
from tests.support.helpers import llama
from tests.support.ranks import on_ranks


def compared(rank):
    policy = Policy(llama())
    copy = FrozenReference(policy).policy
    alone = same_weights(policy, copy)
    for each in (policy, copy):
        shard(each, init_device_mesh("cpu", (1,)))
    with whole(policy, copy):
        return alone, same_weights(policy, copy), policy.causal_lm(torch.ones(1, 3, dtype=torch.long)).logits.shape


def test_comparing_policies_leaves_gathered_weights_whole():
    assert on_ranks(1, compared) == [(True, False, (1, 3, 48))]
