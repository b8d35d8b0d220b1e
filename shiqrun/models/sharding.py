"""This module shards a policy over ranks by FSDP2, and makes its weights whole again where that is needed."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from shiqrun.models.policy import Policy
from shiqrun.models.reference import frozen_copies

Result = TypeVar("Result")


def is_sharded(policy: nn.Module) -> bool:
    """Return whether ranks hold parts of a policy's weights."""
    return isinstance(policy, FSDPModule)


def shard(policy: Policy, mesh: Any) -> None:
    """Shard a policy in place: each decoder layer is a group, and the rest, which the policy's own forward pass reads.

    The policy is the root, so that inside its forward pass the head's weight is a plain, gathered tensor. The root of a
    policy that is trained stays gathered until its backward pass.
    """
    bodies = [policy.causal_lm, *([] if policy.value is None or policy.value.body is None else [policy.value.body])]
    for body in bodies:
        for layer in next((m for m in body.modules() if isinstance(m, nn.ModuleList)), ()):
            fully_shard(layer, mesh=mesh)
    if policy.value is not None and policy.value.linear.weight.dtype != policy.causal_lm.dtype:
        fully_shard(policy.value.linear, mesh=mesh)  # the trained weights of a group have one dtype
    fully_shard(policy, mesh=mesh, reshard_after_forward=not is_trained(policy))
    # Else the first module that computes becomes the root: a layer, where whole weights sample before any step
    cast(FSDPModule, policy)._get_fsdp_state()._lazy_init()


def is_trained(policy: nn.Module) -> bool:
    """Return whether a policy has a weight that is trained, unlike a frozen copy."""
    return any(p.requires_grad for p in policy.parameters())


def first_row(x: DTensor) -> int:
    """Return the number of the first row of a sharded tensor that this rank holds."""
    return int(compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)[1][0])


@contextlib.contextmanager
def whole(*policies: nn.Module) -> Iterator[None]:
    """Let every rank hold all weights inside the block, where it may call any part of the models without the others."""
    groups = [m for policy in policies for m in policy.modules() if isinstance(m, FSDPModule)]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.reshard()
            group.set_reshard_after_forward(group not in policies or not is_trained(group), recurse=False)
    if groups:
        dist.barrier()


@contextlib.contextmanager
def in_step(policy: Policy) -> Iterator[None]:
    """Let all ranks call the same parts of a sharded policy in the same order, each with any input; else do nothing.

    The head and the embeddings are gathered for the block, and each decoder layer while it computes.
    """
    if not is_sharded(policy):
        yield
        return
    root = cast(FSDPModule, policy)
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def with_whole_weights(hook: Callable[[Any, Any, Any], Result]) -> Callable[[Any, Any, Any], Result]:
    """Let a method of a callback, called with trainer and module, run with whole weights on every rank.

    They are those of the module's policy, and of frozen copies that the callback and the module score with.
    """

    @functools.wraps(hook)
    def wrapped(self: Any, trainer: Any, module: Any) -> Result:
        with whole(module.policy, *frozen_copies(self.live, module.reference)):
            return hook(self, trainer, module)

    return wrapped


def skeleton(policy: Policy) -> Policy:
    """Return a copy of a policy without its weights, for `gathered` to fill; it shares the policy's configs.

    A policy that was sharded before its weights were read has kept one.
    """
    memo: dict[int, Any] = {}
    for module in policy.modules():
        config = getattr(module, "config", None)
        memo |= {} if config is None else {id(config): config}
    (policy,) = policy.skeleton or (policy,)
    for p in policy.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(policy, memo)


def gathered(policy: nn.Module, into: Policy) -> Policy:
    """Fill a skeleton with the whole weights of a sharded policy, one tensor at a time; every rank takes part.

    Only rank 0 keeps them.
    """
    found: dict[str, Tensor] = {}
    for name, p in policy.named_parameters():
        tensor = p.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.get_rank() == 0:
            found[name] = tensor.cpu()
    if found:
        owners = dict(into.named_modules())
        places: dict[int, nn.Parameter] = {}
        for name, old in list(into.named_parameters()):
            places[id(old)] = nn.Parameter(found[name], requires_grad=old.requires_grad)
        for module in owners.values():
            for key, old_parameter in list(module._parameters.items()):
                if old_parameter is not None:
                    module._parameters[key] = places[id(old_parameter)]
    return into
