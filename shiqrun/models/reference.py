"""The frozen reference has three forms: cached scores, a copy of the model, or the policy without its adapter."""

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from shiqrun.models.policy import Policy
from shiqrun.models.vocabulary_kl import States
from shiqrun.types import ActionScores, Trajectories

Kind = Literal["cached", "frozen", "adapter", "none"]
"""How a run gets the reference's scores, as `algo.reference` names it."""
Reference = Callable[[Trajectories], ActionScores]
"""Returns the frozen reference's scores of a batch."""


def scores_in_batch(batch: Trajectories) -> ActionScores:
    """Return the reference's scores that a batch carries from the cache.

    Raises:
        ValueError: the batch carries none.
    """
    if batch.reference is None:
        raise ValueError("the batch carries no cached reference scores")
    return batch.reference


class FrozenReference:
    """A `FrozenReference` is a frozen copy of the policy, and no module: no checkpoint or optimiser contains it."""

    def __init__(self, policy: Policy) -> None:
        copied = policy.copied() if policy.copied else Policy(copy.deepcopy(policy.model), autocast=policy.autocast)
        self.policy = copied.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move the frozen copy to a device; nothing is done where it is there, since moving shards whole weights."""
        if next(self.policy.parameters()).device != device:
            self.policy.to(device)

    @torch.no_grad()
    def __call__(self, batch: Trajectories) -> ActionScores:
        """Return the frozen copy's scores of a batch."""
        scores: ActionScores = self.policy(batch)
        return scores

    @torch.no_grad()
    def with_states(self, batch: Trajectories) -> tuple[ActionScores, States]:
        """Return the frozen copy's scores of a batch, and the states that they were computed from."""
        if isinstance(self.policy, FSDPModule):  # what reads the head comes later than this forward pass
            self.policy.set_reshard_after_forward(False, recurse=False)
        found: tuple[ActionScores, States] = self.policy(batch, states=True)
        return found

    @contextlib.contextmanager
    def as_policy(self) -> Iterator[Policy]:
        """Yield the frozen copy, a policy whose outputs are the reference's."""
        yield self.policy


class AdapterOff:
    """An `AdapterOff` reference is the policy itself with its LoRA adapter switched off."""

    def __init__(self, policy: Policy) -> None:
        self._policy = [policy]  # in a list: not a sub-module

    @torch.no_grad()
    def __call__(self, batch: Trajectories) -> ActionScores:
        """Return the policy's scores of a batch without its adapter."""
        with self._policy[0].as_reference():
            scores: ActionScores = self._policy[0](batch)
        return scores

    @torch.no_grad()
    def with_states(self, batch: Trajectories) -> tuple[ActionScores, States]:
        """Return the policy's scores of a batch without its adapter, and the states that they were computed from."""
        with self._policy[0].as_reference():
            found: tuple[ActionScores, States] = self._policy[0](batch, states=True)
        return found

    def use(self, policy: Policy) -> None:
        """Take another policy, with the same base."""
        self._policy[0] = policy

    def to(self, device: torch.device) -> None:
        """Do nothing, because training itself moves the policy to a device."""

    @contextlib.contextmanager
    def as_policy(self) -> Iterator[Policy]:
        """Yield the policy with its adapter off: inside the block its outputs are the reference's."""
        with self._policy[0].as_reference():
            yield self._policy[0]


Live = FrozenReference | AdapterOff
"""References that can score any tokens, and sample completions."""


def frozen_copies(*references: Any) -> list[Policy]:
    """Return the frozen copies of the policy that some references hold, each once; those of another form have none."""
    copies = [reference.policy for reference in references if isinstance(reference, FrozenReference)]
    return list(dict.fromkeys(copies))


def same_weights(one: Policy, other: Policy) -> bool:
    """Return whether two policies have the same tensors, bit by bit; False of those whose weights ranks share."""
    if any(isinstance(policy, FSDPModule) for policy in (one, other)):  # whose `state_dict` cuts gathered weights again
        return False
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    if ours.keys() != theirs.keys():
        return False
    return all(x.dtype == theirs[name].dtype and torch.equal(x, theirs[name]) for name, x in ours.items())


def weights_fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights: every name, shape, dtype and byte of its state dict."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
