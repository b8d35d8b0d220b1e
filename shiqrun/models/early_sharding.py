"""A policy is sharded here before its weights are read, so that no rank ever holds all of them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from shiqrun.models.outline import give_memory
from shiqrun.models.policy import Policy
from shiqrun.models.sharding import shard, skeleton


def share_empty(policy: Policy, fill: Callable[[Policy], None], device: torch.device) -> None:
    """Shard a policy whose weights no rank has read yet over all ranks, and fill the part that this rank holds.

    Args:
        policy: made of an `Outline`.
        fill: reads this rank's rows of the weights.
        device: where they belong.
    """
    empty = skeleton(policy)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    shard(policy, mesh)
    fill(policy)
    policy.skeleton, policy.copied = [empty], lambda: _copy(policy, mesh)


@torch.no_grad()
def _copy(policy: Policy, mesh: Any) -> Policy:
    """Return a copy of a sharded policy without its value head, each rank with the same rows; `deepcopy` is refused."""
    copied = Policy(skeleton(policy).model, autocast=policy.autocast)
    copied.skeleton = [skeleton(copied)]
    give_memory(copied)
    copied.requires_grad_(False)  # before it is sharded, which asks for it
    shard(copied, mesh)
    weights = dict(policy.named_parameters())
    for name, p in copied.named_parameters():
        own, other = (x.to_local() if isinstance(x, DTensor) else x for x in (p, weights[name]))
        own.copy_(other)
    return copied
